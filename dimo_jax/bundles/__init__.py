"""A model on disk: a folder with config.json and params.msgpack.

config.json says how to rebuild the network, how to sample from it, which tokenizer its tokens
belong to, and the SHA-256 of params.msgpack. A generator carries its tokenizer, and one of text its
text encoder, as bundles in the sub-folders tokenizer/ and text_encoder/; CLIP carries its tokenizer
of text as a file. Reading is strict, and executes nothing that a file contains.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import msgpack
import numpy as np
from flax import serialization

from dimo_jax import models, tokenizers
from dimo_jax.bundles import card, config_file, places
from dimo_jax.bundles.ownership import (
    ATTACHMENTS,
    TOKENIZER_FOLDER,
    VQVAE_FOLDER,  # noqa: F401 (used as bundles.VQVAE_FOLDER)
    foreign,
    read,
    read_config,
)
from dimo_jax.bundles.places import CONFIG_FILE, PARAMS_FILE
from dimo_jax.common import files, limits, trees
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.shown import shown
from dimo_jax.models import clip

BUILDERS = {
    "teacher": models.build,
    "generator": models.build,
    "classifier": models.build,
    "features": models.build,
    "detector": models.build,
    "clip": clip.build,
    "tokenizer": tokenizers.build,
}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A model as read from disk.

    Attributes:
        kind: one of BUILDERS.
        model: plain values; the kind's builder makes the network of them.
        params: nested dict of NumPy arrays.
        sampler: how to sample from it, or None.
        tokenizer: {"config": ..., "hash": ...} of the tokenizer its tokens belong to, or None.
        provenance: free-form plain values: where it comes from.
        path: the folder.
        params_hash: trees.fingerprint(params), the same for these values in memory.
        compute: how a token network is computed, of which no file speaks; None: in float32.
    """

    kind: str
    model: dict[str, Any]
    params: Any
    sampler: dict[str, Any] | None
    tokenizer: dict[str, Any] | None
    provenance: dict[str, Any]
    path: AnyPath
    params_hash: str
    compute: models.Compute | None = None

    def build(self) -> Any:
        """Return the network (or tokenizer, or classifier) that `params` belong to.

        Always the same one.

        Functions compiled for a network are kept by it: another one compiles anew.
        """
        return self._built

    @property
    def attachments(self) -> dict[str, bytes]:
        """The files of a known name that were saved with the bundle; see `attachment`."""
        return {name: self.attachment(name) for name in ATTACHMENTS if name in self._recorded}

    @property
    def _recorded(self) -> Mapping[str, Any]:
        """{name of an attachment: its SHA-256}, as config.json has it."""
        found = self.provenance.get("attachments", {})
        return found if isinstance(found, Mapping) else {}

    def attachment(self, name: str) -> bytes:
        """Return a file that was saved with the bundle.

        Args:
            name: as given to `save`.

        Raises:
            InputError: the bundle has no such file, or it is not the one that was saved.
        """
        expected = self._recorded.get(name)
        if expected is None:
            raise InputError(f"{self.path} has no {name}; convert the checkpoint again")
        data = read(self.path, name)
        if hashlib.sha256(data).hexdigest() != expected:
            raise InputError(
                f"{self.path / name} is not the file that the bundle was saved with; copy the "
                "bundle again"
            )
        return data

    @functools.cached_property
    def _built(self) -> Any:
        options = {} if self.compute is None else {"compute": self.compute}
        return BUILDERS[self.kind](self.model, **options)


def params_pieces(params: Any) -> Iterator[bytes]:
    """Yield a parameter tree as flax.serialization's msgpack, leaf by leaf.

    The joined pieces are those of msgpack_serialize, whose result is a second copy of all leaves.

    Args:
        params: nested dict of arrays, each wholly on this process's devices.
    """
    if not isinstance(params, Mapping):
        # In a dict, because only there flax cuts up what is over msgpack's 4 GB (and 1 GB on).
        yield serialization.msgpack_serialize({"": params})[2:]
        return
    yield msgpack.Packer().pack_map_header(len(params))
    # Sorted: the order they were made in does not count.
    for name in sorted(params):
        yield serialization.msgpack_serialize(name)
        yield from params_pieces(params[name])


def params_bytes(params: Any) -> bytes:
    """Return the joined `params_pieces`; the same bytes for the same values."""
    return b"".join(params_pieces(params))


def save(
    path: str | os.PathLike,
    *,
    kind: str,
    model: Mapping[str, Any],
    params: Any,
    sampler: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    tokenizer_params: Any = None,
    attachments: Mapping[str, bytes] | None = None,
    inside: Mapping[str, Mapping[str, Any]] | None = None,
) -> AnyPath:
    """Write a bundle, whole or not at all; a bundle that is there is replaced, and nothing else.

    Args:
        path: the bundle's folder.
        kind: one of BUILDERS.
        model: the network's config.
        params: its parameters, nested dicts of arrays.
        sampler: how to sample from it, plain values.
        tokenizer: {"config": ..., "hash": tokenizers.fingerprint(...)}.
        provenance: plain values.
        tokenizer_params: the tokenizer's parameters; given (with `tokenizer`), the tokenizer is
            written with the model, as the sub-bundle tokenizer/.
        attachments: other files by name; their hashes go into the provenance.
        inside: bundles in sub-folders: {name: what is given here for a bundle of its own}.

    Returns:
        The path.

    Raises:
        ValueError: the parameters are not those of the model, the tokenizer not that of the hash,
            or a generator has no sampler.
        InputError: the path cannot be written or holds something else than a bundle, the model's
            config is not valid, or parameters are not finite.
    """
    path, inside = files.path(path), dict(inside or {})
    content = _content(kind, model, params, sampler, tokenizer, provenance, attachments)
    if tokenizer_params is not None:
        if tokenizer is None:
            raise ValueError("tokenizer_params are given without the tokenizer")
        inner = tokenizers.build(tokenizer["config"])
        if tokenizers.fingerprint(inner, tokenizer_params) != tokenizer["hash"]:
            raise ValueError("tokenizer_params are not those of the tokenizer's hash")
        own = {"kind": "tokenizer", "model": inner.config, "params": tokenizer_params}
        inside[TOKENIZER_FOLDER] = own
    for folder, options in inside.items():
        parts = _content(**options)
        content |= {f"{folder}/{name}": data for name, data in parts.items()}
    if kept := card.edited(path):
        content[card.FILE] = kept
    elif kind == "generator":
        content[card.FILE] = card.text(model, sampler or {}, tokenizer, provenance or {}).encode()
    return files.write_folder(path, content, functools.partial(foreign, written=content))


def _content(
    kind: str,
    model: Any,
    params: Any,
    sampler: Any = None,
    tokenizer: Any = None,
    provenance: Any = None,
    attachments: Mapping[str, bytes] | None = None,
) -> dict[str, files.Content]:
    """Return the bundle's two files, and its attachments."""
    if attachments:
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in attachments.items()}
        provenance = {**(provenance or {}), "attachments": hashes}
    if kind == "generator" and sampler is None:
        raise ValueError("a generator's bundle needs the sampler it was trained for")
    wrong = trees.differences(params, _expected_params(kind, model))
    if wrong:
        raise ValueError(f"the parameters do not fit the {kind}: {'; '.join(wrong)}")
    trees.check_finite(params, f"the {kind}")
    fields = (kind, model, sampler, tokenizer, provenance or {})
    # Serialised a second time rather than kept: a large model would be in memory twice.
    return {
        CONFIG_FILE: config_text(*fields, params).encode(),
        PARAMS_FILE: params_pieces(params),
        **(attachments or {}),
    }


def config_text(
    kind: str, model: Any, sampler: Any, tokenizer: Any, provenance: Any, params: Any
) -> str:
    """Write what stands in config.json."""
    digest = hashlib.sha256()
    for piece in params_pieces(params):
        digest.update(piece)
    config = {
        "format_version": config_file.FORMAT_VERSION,
        "kind": kind,
        "model": model,
        "sampler": sampler,
        "tokenizer": tokenizer,
        "provenance": provenance,
        "params_sha256": digest.hexdigest(),
    }
    return json.dumps(config, indent=2, allow_nan=False, default=dict) + "\n"


def _expected_params(kind: str, model: Mapping[str, Any]) -> Any:
    return jax.eval_shape(BUILDERS[kind](model).init, jax.random.key(0))


def load(path: str | os.PathLike, kind: str | None = None) -> Bundle:
    """Read a bundle and check all of it.

    Args:
        path: the bundle's folder, or a run's; see places.find.
        kind: the kind that is wanted; None for any.

    Returns:
        The bundle.

    Raises:
        InputError: a file is missing, cut off or not the one that was written; config.json has
            unknown, missing or wrong fields; or the parameters are not exactly those of the model,
            or not finite, in which case each is listed.
    """
    path = places.find(path, kind)
    config = read_config(path)
    if kind is not None and config["kind"] != kind:
        raise InputError(f"{path} is a {config['kind']}, not a {kind}; give a {kind}'s bundle")
    data = read(path, PARAMS_FILE)
    digest = hashlib.sha256(data).hexdigest()
    if digest != config["params_sha256"]:
        raise InputError(
            f"{path / PARAMS_FILE} ({len(data)} bytes) has the SHA-256 {digest[:12]}..., but "
            f"{CONFIG_FILE} says {config['params_sha256'][:12]}...; it is cut off or from another "
            "bundle, so copy the bundle again"
        )
    try:
        params = serialization.msgpack_restore(data)
        found = trees.named_leaves(params)
        if other := next((x for x in found.values() if not isinstance(x, np.ndarray)), None):
            raise ValueError(f"it holds a {type(other).__name__}")
    except Exception as error:  # msgpack, flax and NumPy raise whatever they stumble over
        raise InputError(
            f"{path / PARAMS_FILE} is not a tree of arrays: {shown(error)}; copy the bundle again"
        ) from error
    try:
        # Before anything is built: the sizes decide how long that takes.
        limits.check_sizes(config["model"], len(found))
        limits.check_sizes(config["sampler"] or {})
        expected = _expected_params(config["kind"], config["model"])
    except InputError as error:
        raise InputError(f"{path / CONFIG_FILE}: {error}") from error
    except Exception as error:  # sizes of the wrong type or sign fail anywhere inside the network
        raise InputError(
            f"{path / CONFIG_FILE} describes no model that can be built: {shown(error)}"
        ) from error
    wrong = trees.differences(params, expected)
    if wrong:
        raise InputError(f"{path} has parameters unlike its model's: {'; '.join(wrong)}")
    trees.check_finite(params, str(path))
    fields = {name: config[name] for name in ("kind", "model", "sampler", "tokenizer")}
    return Bundle(
        **fields,
        params=params,
        provenance=config["provenance"],
        path=path,
        params_hash=trees.fingerprint(params),
    )


def load_tokenizer(path: str | os.PathLike, model: Bundle | None = None) -> Bundle:
    """Read a tokenizer's bundle and check that it is the one the model's tokens belong to.

    Args:
        path: the tokenizer's folder, usually <model's bundle>/tokenizer.
        model: a teacher or generator; None for no comparison.

    Returns:
        The tokenizer's bundle.

    Raises:
        InputError: as `load`, or it is another tokenizer than the model was trained with.
    """
    bundle = load(path, kind="tokenizer")
    if model is None:
        return bundle
    tokenizer, network = bundle.build(), model.build()
    found = (tokenizer.num_tokens, tokenizer.codebook_size)
    if found != (network.num_tokens, network.codebook_size):
        raise InputError(
            f"the tokenizer {bundle.path} has {found[0]} tokens of {found[1]} codes, but "
            f"{model.path} has {network.num_tokens} tokens of {network.codebook_size} codes"
        )
    digest = tokenizers.fingerprint(tokenizer, bundle.params)
    if model.tokenizer is not None and digest != model.tokenizer["hash"]:
        raise InputError(
            f"the tokenizer {bundle.path} has the hash {digest[:12]}..., but {model.path} was "
            f"trained with {str(model.tokenizer['hash'])[:12]}...; give that one"
        )
    return bundle
