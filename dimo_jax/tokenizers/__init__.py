"""Image <-> tokens. One dict of names; a file for each tokenizer."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from dimo_jax.common import limits, trees
from dimo_jax.common.errors import InputError
from dimo_jax.tokenizers import google_vqgan, gray_levels, patches, vq_model, vqgan
from dimo_jax.tokenizers.tokenizer import Tokenizer

__all__ = ["TOKENIZERS", "Tokenizer", "build", "fingerprint"]

TOKENIZERS: dict[str, Callable[..., Tokenizer]] = {
    "google_vqgan": google_vqgan.build,
    "gray_levels": gray_levels.build,
    "patches": patches.build,
    "vqgan": vqgan.build,
    "llamagen": vqgan.build_llamagen,
    "vq_model": vq_model.build,
}


def build(config: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer that a config describes.

    Args:
        config: `name`, one of `TOKENIZERS`, and any arguments of that tokenizer's own `build`;
            those left out take their defaults there.

    Returns:
        The tokenizer; its `config` is complete and builds an equal one again.

    Raises:
        InputError: if the name or a field is unknown, or a value is out of range.
    """
    limits.check_sizes(config)
    name = config.get("name")
    if name not in TOKENIZERS:
        raise InputError(f"the tokenizer's name is {name!r}, expected one of {sorted(TOKENIZERS)}")
    fields = {field: value for field, value in config.items() if field != "name"}
    known = list(inspect.signature(TOKENIZERS[name]).parameters)
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise InputError(f"the tokenizer {name!r} has no fields {unknown}, only {known}")
    return TOKENIZERS[name](**fields)


def fingerprint(tokenizer: Tokenizer, params: trees.Tree) -> str:
    """SHA-256 of config and parameters: equal for two tokenizers that mean the same by a token.

    Args:
        tokenizer: from `build`.
        params: its parameters.

    Returns:
        64 hexadecimal digits.
    """
    config = json.dumps(tokenizer.config, sort_keys=True)
    return hashlib.sha256(f"{config};{trees.fingerprint(params)}".encode()).hexdigest()
