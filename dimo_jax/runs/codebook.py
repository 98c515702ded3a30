"""The codebook of the tokenizer `patches`: fitted to a run's pictures once, and kept beside it."""

from typing import Any

import jax
import numpy as np

from dimo_jax import bundles
from dimo_jax.common.errors import about
from dimo_jax.common.files import AnyPath
from dimo_jax.data.built_in import BuiltIn
from dimo_jax.tokenizers import Tokenizer, patches

FOLDER = "tokenizer"  # of a run's work directory


def kept(path: AnyPath, tokenizer: Tokenizer) -> Any:
    """Return the parameters that lie in a bundle.

    None if there is none, or it is of other sizes.
    """
    if not (path / bundles.CONFIG_FILE).exists():  # of a bundle in an object store the last file
        return None
    bundle = bundles.load_tokenizer(path)
    same = bundle.model == tokenizer.config
    return jax.tree.map(np.asarray, bundle.params) if same else None


def kept_or_fitted(path: AnyPath, tokenizer: Tokenizer, pictures: type[BuiltIn], seed: int) -> Any:
    """Return the kept parameters, or new ones, seconds of work; nothing is written.

    Raises:
        InputError: as patches.fit.
    """
    if (found := kept(path, tokenizer)) is not None:
        return found
    size, patch_size = (tokenizer.config[name] for name in ("codebook_size", "patch_size"))
    with about("config.tokenizer"):
        return patches.fit(pictures.in_memory("train").images, size, seed, patch_size)


def keep(path: AnyPath, tokenizer: Tokenizer, params: Any) -> Any:
    """Return the kept parameters; where there are none, the ones given, kept now.

    Process 0 calls it first: another machine's k-means may differ in the last bits.
    """
    if (found := kept(path, tokenizer)) is not None:
        return found
    bundles.save(path, kind="tokenizer", model=tokenizer.config, params=params)
    return params
