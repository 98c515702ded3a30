"""Whose checkpoints can be converted, how each is recognised, and what becomes of it."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dimo_jax import models, tokenizers
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.common.trees import Tree
from dimo_jax.convert.formats import folders, torch_files
from dimo_jax.convert.networks import (
    clip,
    google,
    halton,
    inception,
    layouts,
    maskgit,
    meissonic,
    vq_model,
    vqgan,
)
from dimo_jax.convert.networks.layouts import Entry
from dimo_jax.models import clip as clip_model

State = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Options:
    """What the shapes do not say, from the command line; None for the source's own.

    Attributes:
        heads: attention heads.
        num_classes: of a table that holds codes and classes.
        image_size: pixels along a side, of a tokenizer.
        model_yaml: the text of the model.yaml beside a VQGAN.
        activation: of CLIP, a key of models.clip.ACTIVATIONS.
        described: the JSON beside the weights, as parsed.
    """

    heads: int | None = None
    num_classes: int = 1000
    image_size: int | None = None
    model_yaml: str | None = None
    activation: str | None = None
    described: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """One family of published files.

    Attributes:
        kind: "teacher", "generator", "tokenizer", "features" or "clip": the bundle's.
        keys: tensors that this family has and no other.
        config_from: (state, options) -> the network's or tokenizer's config.
        entries: (config, state) -> the table.
        ignored: expressions for keys that are left out: losses, buffers.
        published: sizes of the published files; others convert with a notice.
        sampler: config -> how to sample from it, or None.
    """

    kind: str
    keys: tuple[str, ...]
    config_from: Callable[[State, Options], dict[str, Any]]
    entries: Callable[[Mapping[str, Any], State], list[Entry]]
    ignored: tuple[str, ...] = ()
    published: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    sampler: Callable[[Mapping[str, Any]], dict[str, Any] | None] = lambda config: None


def _maskgit_config(state: State, options: Options) -> dict[str, Any]:
    return maskgit.config_from(state, options.heads or 16, options.num_classes)


def _maskgit_sampler(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings behind the published FID (guidance w + 1).

    6.80 at 256 px, 7.26 at 512.
    """
    if config["num_tokens"] > 256:
        return {"num_steps": 15, "guidance": 3.8, "choice_temperature": 7.0}
    return {"num_steps": 8, "guidance": 4.0, "choice_temperature": 4.5}


def _halton_sampler(config: Mapping[str, Any]) -> dict[str, Any]:
    """32 steps and the guidance w + 1 of the published FIDs, which falls with the size."""
    at_256 = config["num_tokens"] <= 256
    by_width = {384: 2.5, 512: 2.0, 768: 1.7} if at_256 else {512: 2.0, 768: 1.7, 1024: 1.5}
    return {"num_steps": 32, "guidance": by_width.get(config["width"], 1.5)}


def _google_heads(state: State, options: Options) -> dict[str, Any]:
    config = google.transformer_config_from(state, options.num_classes)
    if options.heads not in (None, config["heads"]):
        raise InputError(f"the file's kernels have {config['heads']} heads, not {options.heads}")
    return config


_MASKGIT_SIZES = {"width": (768,), "depth": (24,), "codebook_size": (1024,), "num_classes": (1000,)}
# The generator as the authors sample it: r_init and sigma_init of their configuration, T = 1.
_DIMO_SAMPLER = {"ratio": 0.6, "sigma": 0.1, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

# The order in which a file without --source is compared.
SOURCES = {
    "maskgit": Source(
        "teacher",
        ("pos_emb", "bias", "tok_emb.weight", "transformer.layers.0.0.fn.mha.in_proj_weight"),
        _maskgit_config,
        lambda config, state: maskgit.entries(config),
        published=_MASKGIT_SIZES,
        sampler=_maskgit_sampler,
    ),
    # The same keys as its teacher: only --source tells them apart.
    "dimo": Source(
        "generator",
        ("pos_emb", "bias", "tok_emb.weight", "transformer.layers.0.0.fn.mha.in_proj_weight"),
        _maskgit_config,
        lambda config, state: maskgit.entries(config),
        published=_MASKGIT_SIZES,
        sampler=lambda config: _DIMO_SAMPLER,
    ),
    "halton": Source(
        "teacher",
        ("cls_emb.weight", "reg_tokens.weight"),
        lambda state, options: halton.config_from(state, options.heads),
        lambda config, state: halton.entries(config),
        published={"width": (384, 512, 768, 1024, 1152), "codebook_size": (16384,)},
        sampler=_halton_sampler,
    ),
    "google": Source(
        "teacher",
        ("Embed_0/word_embeddings/embedding",),
        _google_heads,
        lambda config, state: google.transformer_entries(config),
        published={"width": (768,), "depth": (24,)},
        sampler=lambda config: {"num_steps": 8, "choice_temperature": 4.5},
    ),
    "vqgan": Source(
        "tokenizer",
        ("encoder.down.0.block.0.conv1.bias", "quantize.embedding.weight"),
        lambda state, options: vqgan.config_from(state, options.model_yaml, options.image_size),
        lambda config, state: vqgan.entries(config),
        ignored=vqgan.IGNORED,
        published={"ch": (128,), "n_embed": (1024, 16384)},
    ),
    "llamagen": Source(
        "tokenizer",
        ("encoder.conv_blocks.0.res.0.conv1.weight",),
        lambda state, options: vqgan.config_from(state, None, options.image_size),
        lambda config, state: vqgan.entries(config),
        ignored=vqgan.IGNORED,
        published={"ch": (128,), "n_embed": (16384,)},
    ),
    "google_vqgan": Source(
        "tokenizer",
        ("quantizer/codebook",),
        lambda state, options: google.tokenizer_config_from(state, options.image_size or 256),
        lambda config, state: google.tokenizer_entries(config, google.tokenizer_layout(state)),
        published={"ch": (128,)},
    ),
    "inception": Source(
        "features",
        ("Mixed_7c.branch3x3dbl_3b.conv.weight", "fc.weight"),
        lambda state, options: inception.config_from(state),
        lambda config, state: inception.entries(),
        ignored=inception.IGNORED,
        published={"num_logits": (1008,), "divisor": (1,)},
    ),
    "clip": Source(
        "clip",
        ("token_embedding.weight", "visual.conv1.weight", "ln_final.weight"),
        lambda state, options: clip.config_from(state, options.activation, options.described),
        lambda config, state: clip.entries(config, clip.is_hugging_face(state)),
        ignored=clip.IGNORED,
        published={"projection": (512, 640, 768, 1024, 1280)},
    ),
}

# Networks and tokenizers whose bundles go back to a PyTorch state dict of the original keys.
TORCH_TABLES: dict[str, Callable[[Mapping[str, Any]], list[Entry]]] = {
    "maskgit": maskgit.entries,
    "halton": halton.entries,
    "vqgan": vqgan.entries,
    "llamagen": vqgan.entries,
    "google_vqgan": lambda config: google.tokenizer_entries(config, "torch"),
    "meissonic": meissonic.entries,
    "vq_model": vq_model.entries,
}


def read(path: str | Path, at: str | None = None) -> dict[str, np.ndarray]:
    """Return the tensors of any file that a source publishes; nothing in it is executed.

    Args:
        path: .pth, .ckpt, .bin (both containers), .safetensors, the index of several of these,
            or Flax's msgpack.
        at: where in a file of PyTorch or of safetensors the weights are: a key, or what their keys
            begin with before a dot.

    Returns:
        {key: array}, views of the mapped file where it can be. Of a training program's file that
        has one known model inside another's keys, such as model.*, that model.

    Raises:
        InputError: the file is missing, damaged, hostile, or of no such format.
    """
    path = Path(path)
    if path.is_file():
        with open(path, "rb") as file:
            head = file.read(2)
        # Flax's msgpack begins with a small map; a pickle with 0x80, which would be an empty one.
        if len(head) > 1 and 0x81 <= head[0] <= 0x8F and path.suffix != ".safetensors":
            return google.from_bytes(path.read_bytes())
    state = folders.read(path, at)
    return state if at is not None or _is_known(state) else _inner(state, path)


def _is_known(state: State) -> bool:
    try:
        recognise(state)
    except InputError:
        return False
    return True


def _inner(state: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Return the one part of a state dict that is of a known source.

    The state dict if there is none.
    """
    inside: dict[str, dict[str, np.ndarray]] = {}
    for key, value in state.items():
        first, dot, rest = key.partition(".")
        if dot:
            inside.setdefault(first, {})[rest] = value
    known = [first for first, part in inside.items() if _is_known(part)]
    if len(known) > 1:
        raise InputError(
            f"{path} holds a model under each of {shown(', '.join(known))}; choose with --key"
        )
    return inside[known[0]] if known else state


def recognise(state: State) -> str:
    """Return the source whose keys these are.

    Args:
        state: {key: array}.

    Returns:
        A key of SOURCES; "maskgit" for both that family and "dimo".

    Raises:
        InputError: no source has these keys.
    """
    for name, source in SOURCES.items():
        if all(key in state for key in source.keys):
            return name
    # The PyTorch port of Google's tokenizer: as Taming's VQGAN, but no bias in its blocks.
    if "encoder.down.0.block.0.conv1.weight" in state:
        return "google_vqgan"
    if clip.is_hugging_face(state):
        return "clip"
    first = shown(", ".join(list(state)[:4]))
    raise InputError(
        f"its {len(state)} tensors ({first}, ...) are of no known source; "
        f"known are {', '.join(SOURCES)}"
    )


def convert(state: State, source: Source, options: Options) -> tuple[dict[str, Any], Tree]:
    """Return a bundle's model config and parameters.

    Args:
        state: {key: array}.
        source: whose it is.
        options: what the shapes do not say.

    Returns:
        (config, params).

    Raises:
        InputError: keys or shapes are not exactly those of the source; all are listed.
    """
    kept = {k: v for k, v in state.items() if not any(re.search(p, k) for p in source.ignored)}
    config = source.config_from(kept, options)
    network = build(source.kind, config)
    like = jax.eval_shape(network.init, jax.random.key(0))
    return network.config, layouts.to_params(
        source.entries(config, kept), kept, like, torch_files.release
    )


def build(kind: str, config: Mapping[str, Any]) -> Any:
    """Return the network or tokenizer of a config."""
    builders = {"tokenizer": tokenizers.build, "clip": clip_model.build}
    return builders.get(kind, models.build)(config)


def unusual(source: Source, config: Mapping[str, Any]) -> list[str]:
    """Return the sizes that no published file of the source has, in words."""
    return [
        f"{name} {config[name]} (published: {', '.join(map(str, sizes))})"
        for name, sizes in source.published.items()
        if config[name] not in sizes
    ]
