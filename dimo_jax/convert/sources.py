"""Whose checkpoints can be converted: how each is recognised, what it becomes, how it goes back."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dimo_jax import bundles
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.common.trees import Tree
from dimo_jax.conditions.text import TEXT_ENCODER_FOLDER
from dimo_jax.convert import published_samplers
from dimo_jax.convert.formats import folders, torch_files
from dimo_jax.convert.networks import (
    clip,
    clip_json,
    google,
    halton,
    inception,
    layouts,
    mask2former,
    maskgit,
    meissonic,
    vq_model,
    vqgan,
)
from dimo_jax.convert.networks.layouts import Entry

State = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Options:
    """What the shapes do not say, from the command line; None for the source's own.

    Attributes:
        heads: attention heads.
        num_classes: of a table that holds codes and classes.
        image_size: pixels along a side.
        num_tokens: of an image, where its tokenizer is known.
        text_length: ids of a prompt, where the text encoder is known.
        model_yaml: the text of the model.yaml beside a VQGAN.
        activation: of CLIP, a key of models.clip.ACTIVATIONS.
        described: the JSON beside the weights, as parsed.
    """

    heads: int | None = None
    num_classes: int = 1000
    image_size: int | None = None
    num_tokens: int | None = None
    text_length: int | None = None
    model_yaml: str | None = None
    activation: str | None = None
    described: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Folder:
    """One model's part of a folder of text to image, as diffusers and transformers lay it down.

    Attributes:
        name: of the sub-folder.
        config_json: config -> the fields of its config.json.
        entries: config -> the table by which its weights are written.
        loaded_by: (library, class); or, of code in diffusers_files/, (file, class).
        weights_file: what its library calls them.
    """

    name: str
    config_json: Callable[[Mapping[str, Any]], dict[str, Any]]
    entries: Callable[[Mapping[str, Any]], list[Entry]]
    loaded_by: tuple[str, str]
    weights_file: str = folders.DIFFUSERS_WEIGHTS


@dataclasses.dataclass(frozen=True)
class Source:
    """One family of published checkpoints, each a file or a folder of one model.

    Attributes:
        kind: "teacher", "tokenizer", "features", "detector" or "clip": the bundle's.
        keys: tensors that this family has and none before it, in each of its layouts.
        config_from: (state, options) -> the network's or tokenizer's config.
        entries: (config, state) -> the table.
        ignored: expressions for keys that are left out: losses, buffers.
        published: sizes of the published files; others convert with a notice.
        sampler: config -> how to sample from it, or None.
        generator: how to sample from the one-step generator that has the same keys.
        torch: config -> the table by which a bundle goes back to a PyTorch state dict.
        folder: how it goes back to a folder, and is found in one of several models; its JSON is
            read.
    """

    kind: str
    keys: tuple[tuple[str, ...], ...]
    config_from: Callable[[State, Options], dict[str, Any]]
    entries: Callable[[Mapping[str, Any], State], list[Entry]]
    ignored: tuple[str, ...] = ()
    published: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    sampler: Callable[[Mapping[str, Any]], dict[str, Any] | None] = lambda config: None
    generator: Mapping[str, Any] | None = None
    torch: Callable[[Mapping[str, Any]], list[Entry]] | None = None
    folder: Folder | None = None


def _maskgit_config(state: State, options: Options) -> dict[str, Any]:
    return maskgit.config_from(state, options.heads or 16, options.num_classes)


def _google_heads(state: State, options: Options) -> dict[str, Any]:
    config = google.transformer_config_from(state, options.num_classes)
    if options.heads not in (None, config["heads"]):
        raise InputError(f"the file's kernels have {config['heads']} heads, not {options.heads}")
    return config


def _meissonic_config(state: State, options: Options) -> dict[str, Any]:
    fields = options.described or {}
    size = options.image_size or meissonic.image_size(fields)
    num_tokens = options.num_tokens or (size // 16) ** 2  # of the published VQ model
    return meissonic.config_from(fields, num_tokens, options.text_length or 77)


_MASKGIT_SIZES = {
    **{"width": (768,), "depth": (24,)},
    **{"codebook_size": (1024,), "num_classes": (1000,)},
}
# Of --source: the one-step generator of whichever source has the keys.
GENERATOR = "dimo"

# The order in which a file without --source is compared, and the models of a folder are converted.
SOURCES = {
    # Before maskgit, whose keys it has too.
    "di4c": Source(
        "generator",
        ((maskgit.MIXTURE,),),
        _maskgit_config,
        lambda config, state: maskgit.entries(config),
        published={**_MASKGIT_SIZES, "mixture_dim": (512,)},
        sampler=published_samplers.di4c,
    ),
    "maskgit": Source(
        "teacher",
        (("pos_emb", "bias", "tok_emb.weight", "transformer.layers.0.0.fn.mha.in_proj_weight"),),
        _maskgit_config,
        lambda config, state: maskgit.entries(config),
        published=_MASKGIT_SIZES,
        sampler=published_samplers.maskgit,
        # As the authors sample it: r_init and sigma_init of their configuration, T = 1.
        generator={"ratio": 0.6, "sigma": 0.1, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
        torch=maskgit.entries,
    ),
    "halton": Source(
        "teacher",
        (("cls_emb.weight", "reg_tokens.weight"),),
        lambda state, options: halton.config_from(state, options.heads),
        lambda config, state: halton.entries(config),
        published={"width": (384, 512, 768, 1024, 1152), "codebook_size": (16384,)},
        sampler=published_samplers.halton,
        torch=halton.entries,
    ),
    "google": Source(
        "teacher",
        (("Embed_0/word_embeddings/embedding",),),
        _google_heads,
        lambda config, state: google.transformer_entries(config),
        published={"width": (768,), "depth": (24,)},
        sampler=lambda config: {"num_steps": 8, "choice_temperature": 4.5},
    ),
    "vqgan": Source(
        "tokenizer",
        (("encoder.down.0.block.0.conv1.bias", "quantize.embedding.weight"),),
        lambda state, options: vqgan.config_from(state, options.model_yaml, options.image_size),
        lambda config, state: vqgan.entries(config),
        ignored=vqgan.IGNORED,
        published={"ch": (128,), "n_embed": (1024, 16384)},
        torch=vqgan.entries,
    ),
    "llamagen": Source(
        "tokenizer",
        (("encoder.conv_blocks.0.res.0.conv1.weight",),),
        lambda state, options: vqgan.config_from(state, None, options.image_size),
        lambda config, state: vqgan.entries(config),
        ignored=vqgan.IGNORED,
        published={"ch": (128,), "n_embed": (16384,)},
        torch=vqgan.entries,
    ),
    "google_vqgan": Source(
        "tokenizer",
        # The PyTorch port has Taming's keys, but no bias in its blocks.
        (("quantizer/codebook",), ("encoder.down.0.block.0.conv1.weight",)),
        lambda state, options: google.tokenizer_config_from(state, options.image_size or 256),
        lambda config, state: google.tokenizer_entries(config, google.tokenizer_layout(state)),
        published={"ch": (128,)},
        torch=lambda config: google.tokenizer_entries(config, "torch"),
    ),
    "inception": Source(
        "features",
        (("Mixed_7c.branch3x3dbl_3b.conv.weight", "fc.weight"),),
        lambda state, options: inception.config_from(state),
        lambda config, state: inception.entries(),
        ignored=inception.IGNORED,
        published={"num_logits": (1008,), "divisor": (1,)},
    ),
    "mask2former": Source(
        "detector",
        ((mask2former.FIRST,), *((key,) for key in mask2former.FACEBOOK)),
        lambda state, options: mask2former.config_from(state),
        mask2former.entries,
        ignored=mask2former.IGNORED,
        published={"num_classes": (80,), "num_queries": (100,), "width": (256,)},
    ),
    "clip": Source(
        "clip",
        (
            ("token_embedding.weight", "visual.conv1.weight", "ln_final.weight"),
            (clip.HF_FIRST,),
        ),
        lambda state, options: clip.config_from(state, options.activation, options.described),
        lambda config, state: clip.entries(config, clip.is_hugging_face(state)),
        ignored=clip.IGNORED,
        published={"projection": (512, 640, 768, 1024, 1280)},
        folder=Folder(
            TEXT_ENCODER_FOLDER,
            clip_json.text_config_json,
            lambda config: clip.entries(config, hugging_face=True),
            ("transformers", "CLIPTextModelWithProjection"),
            folders.TRANSFORMERS_WEIGHTS,
        ),
    ),
    # Meissonic's tokenizer; before its transformer, whose bundle says which one its tokens are of.
    "vq_model": Source(
        "tokenizer",
        (("encoder.down_blocks.0.resnets.0.conv1.weight", "post_quant_conv.weight"),),
        lambda state, options: vq_model.config_from(
            options.described or {}, options.image_size or 1024
        ),
        lambda config, state: vq_model.entries(config),
        torch=vq_model.entries,
        folder=Folder("vqvae", vq_model.config_json, vq_model.entries, ("diffusers", "VQModel")),
    ),
    "meissonic": Source(
        "teacher",
        (("context_embedder.weight", "embed.embeddings.weight", "mlm_layer.conv1.weight"),),
        _meissonic_config,
        lambda config, state: meissonic.entries(config),
        # 64 steps and guidance 9, as its authors recommend.
        sampler=lambda config: {"num_steps": 64, "guidance": 9.0, "choice_temperature": 2.0},
        # What the released one was trained with. The authors' sampling script defaults to ratio
        # 0.6 and sigma 0.1, those of their ImageNet model.
        generator={"ratio": 0.5, "sigma": 0.3, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
        torch=meissonic.entries,
        folder=Folder(
            "transformer",
            meissonic.config_json,
            meissonic.entries,
            ("modeling_meissonic", "Transformer2DModel"),
        ),
    ),
}


def recognise(state: State) -> str:
    """Return the source whose keys these are.

    Args:
        state: {key: array}.

    Returns:
        A key of SOURCES.

    Raises:
        InputError: no source has these keys.
    """
    for name, source in SOURCES.items():
        if _has_keys(state, source):
            return name
    first = shown(", ".join(list(state)[:4]))
    raise InputError(
        f"its {len(state)} tensors ({first}, ...) are of no known source; "
        f"known are {', '.join(SOURCES)}"
    )


def _has_keys(state: State, source: Source) -> bool:
    return any(all(key in state for key in layout) for layout in source.keys)


def choose(name: str | None, state: State) -> tuple[str, Source]:
    """Return what a state dict is converted as.

    Args:
        name: a key of SOURCES, of which "meissonic" is for its tokenizer too; GENERATOR, or None:
            the keys decide.
        state: {key: array}.

    Returns:
        (name of the source, or GENERATOR; the source).

    Raises:
        InputError: no source has these keys, or none that has a one-step generator.
    """
    tokenizer = name == "meissonic" and _has_keys(state, SOURCES["vq_model"])
    if name in SOURCES and not tokenizer:
        return name, SOURCES[name]
    found = recognise(state)
    source = SOURCES[found]
    if name != GENERATOR or (source.folder and not source.generator):
        return found, source
    if source.generator is None:
        known = ", ".join(name for name, source in SOURCES.items() if source.generator)
        raise InputError(f"it has the keys of {found}; a one-step generator has those of {known}")
    settings = dict(source.generator)
    return name, dataclasses.replace(source, kind="generator", sampler=lambda config: settings)


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
    network = bundles.BUILDERS[source.kind](config)
    like = jax.eval_shape(network.init, jax.random.key(0))
    return network.config, layouts.to_params(
        source.entries(config, kept), kept, like, torch_files.release
    )


def unusual(source: Source, config: Mapping[str, Any]) -> list[str]:
    """Return the sizes that no published file of the source has, in words."""
    return [
        f"{name} {config[name]} (published: {', '.join(map(str, sizes))})"
        for name, sizes in source.published.items()
        if config[name] not in sizes
    ]
