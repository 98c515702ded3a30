"""Google's original MaskGIT: which array of its Flax files is which leaf of ours.

Both published files, the transformer and the tokenizer, are Flax msgpack of a variables dict
{"params": tree}. Here the tree is flat, {"Embed_0/embeddings_ln/scale": array}, so that the tables
of `layouts` read it like a state dict. The tokenizer exists in PyTorch too, one tensor for one.

How certain the names are: those of the transformer and of the PyTorch port are written out in their
sources. The tokenizer's modules have no names there, so Flax numbers them by class in the order of
their calls; that order was read from google-research/maskgit, nets/vqgan_tokenizer.py, and the
names compared with what that code gives in flax 0.12. No published file could be opened.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from flax import serialization, traverse_util

from dimo_jax.common import trees
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.convert.networks.layouts import Entry, conv, count_numbered, norm, same, shape_of

Layout = Literal["flax", "torch"]

_LAYER = re.compile(r"TransformerLayer_(\d+)/")
_FLAX_BLOCK = re.compile(r"encoder/ResBlock_(\d+)/")
_FLAX_DECODER_CONV = re.compile(r"decoder/Conv_(\d+)/")
_TORCH_BLOCK = re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.")


def from_bytes(data: bytes) -> dict[str, np.ndarray]:
    """Return the flat arrays of a published Flax file.

    Args:
        data: the file's content.

    Returns:
        {"Embed_0/embeddings_ln/scale": array}, without the leading "params/".

    Raises:
        InputError: it is no msgpack, or holds something else than arrays under "params".
    """
    try:
        variables = serialization.msgpack_restore(data)
    except Exception as error:  # msgpack, flax and NumPy each have their own for bytes they dislike
        raise InputError(
            f"the file is not Flax's msgpack ({type(error).__name__}: {shown(error)}); it may be "
            "cut off: fetch it again"
        ) from error
    found = (
        sorted(map(shown, variables)) if isinstance(variables, dict) else type(variables).__name__
    )
    if found != ["params"] or not isinstance(variables["params"], dict):
        raise InputError(
            f"the file holds {shown(found)}, expected a dict with 'params' and nothing else"
        )
    state = trees.named_leaves(variables["params"])
    wrong = [key for key, value in state.items() if not isinstance(value, np.ndarray)]
    if wrong:
        raise InputError(f"{shown(', '.join(wrong))} in the file should be arrays and are not")
    return state


def to_bytes(state: Mapping[str, np.ndarray]) -> bytes:
    """Return a Flax file of flat arrays: the inverse of `from_bytes`.

    Args:
        state: {"a/b": array}.

    Returns:
        The file's content; the same for the same arrays in any order.
    """
    tree = traverse_util.unflatten_dict(dict(sorted(state.items())), sep="/")
    return serialization.msgpack_serialize({"params": tree})


def transformer_entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the table of the transformer.

    Args:
        config: of models.google_maskgit; depth is looked at.

    Returns:
        9 + 16 depth entries; every array is stored alike in both.
    """
    table = [
        same("Embed_0/word_embeddings/embedding", "token_embedding"),
        same("Embed_0/position_embeddings/embedding", "position_embedding"),
        *_flax("Embed_0/embeddings_ln", "first_norm", "scale"),
    ]
    for layer in range(config["depth"]):
        attention, mlp = (f"TransformerLayer_{layer}/{part}_0" for part in ("Attention", "Mlp"))
        path = f"block_{layer}"
        for name in ("query", "key", "value", "out"):
            table += _flax(f"{attention}/self_attention/{name}", f"{path}/attention/{name}")
        table += [
            *_flax(f"{attention}/attention_output_ln", f"{path}/attention_norm", "scale"),
            *_flax(f"{mlp}/intermediate_output", f"{path}/mlp_in"),
            *_flax(f"{mlp}/layer_output", f"{path}/mlp_out"),
            *_flax(f"{mlp}/layer_output_ln", f"{path}/mlp_norm", "scale"),
        ]
    return [
        *table,
        *_flax("MlmLayer_0/mlm_dense", "last"),
        *_flax("MlmLayer_0/mlm_ln", "last_norm", "scale"),
        same("MlmLayer_0/mlm_bias/bias", "output_bias"),
    ]


def transformer_config_from(state: Mapping[str, Any], num_classes: int = 1000) -> dict[str, Any]:
    """Return the configuration of the transformer that flat arrays belong to.

    Args:
        state: {key: array}; only shapes are looked at, and only of what gives a size.
        num_classes: no shape tells codes from classes.

    Returns:
        What models.build takes. The heads are in the shapes, unlike PyTorch's.

    Raises:
        InputError: an array that gives a size is missing or has the wrong number of axes, or the
            vocabulary is too small for the classes.
    """
    word = "Embed_0/word_embeddings/embedding"
    vocabulary, width = shape_of(state, word, 2)
    codebook_size = vocabulary - num_classes - 1
    if codebook_size < 1:
        raise InputError(
            f"{word} has {vocabulary} rows, expected more than {num_classes + 1}: those of "
            f"{num_classes} classes and [MASK]; give the number of classes"
        )
    first = "TransformerLayer_0"
    return {
        "name": "google_maskgit",
        "num_tokens": shape_of(state, "Embed_0/position_embeddings/embedding", 2)[0] - 1,
        "codebook_size": codebook_size,
        "num_classes": num_classes,
        "width": width,
        "depth": _count(_LAYER, state),
        "heads": shape_of(state, f"{first}/Attention_0/self_attention/query/kernel", 3)[1],
        "mlp_dim": shape_of(state, f"{first}/Mlp_0/intermediate_output/kernel", 2)[1],
        "dropout": 0.1,
    }


def tokenizer_entries(config: Mapping[str, Any], layout: Layout) -> list[Entry]:
    """Return the table of the tokenizer.

    Args:
        config: a complete config of tokenizers.google_vqgan.build.
        layout: "flax" for the published file, "torch" for maskgit-vqgan-imagenet-f16-256.bin,
            whose decoder counts its levels from the finest, as we do, and runs them backwards.

    Returns:
        One entry for each array.

    Source: google-research/maskgit `VQVAE`; the port is in bytedance/1d-tokenizer.
    """
    codebook = {"flax": "quantizer/codebook", "torch": "quantize.embedding.weight"}[layout]
    table = [same(codebook, "codebook")]
    for side in ("encoder", "decoder"):
        for kind, flax_name, torch_name, path, bias in _side(config, side == "encoder"):
            if layout == "flax":
                leaf = "kernel" if kind == "conv" else "scale"
                table += _flax(f"{side}/{flax_name}", f"{side}/{path}", leaf, bias)
            else:
                read = conv if kind == "conv" else norm
                table += read(f"{side}.{torch_name}", f"{side}/{path}", bias)
    return table


def _side(config: Mapping[str, Any], encoder: bool) -> Iterator[tuple[str, str, str, str, bool]]:
    """Yield (kind, names in both, path, has a bias) of every convolution and norm, as called.

    The order is what Flax's numbers stand for: it must be that of the original's forward pass.
    """
    factors, num_blocks = config["ch_mult"], config["num_res_blocks"]
    top, stage = len(factors) - 1, "down" if encoder else "up"
    levels = [(f"{stage}.{i}.block", f"level_{i}", i) for i in range(top + 1)]
    middle = [("mid", "middle", top)]
    stages = levels + middle if encoder else middle + levels[::-1]
    channels = 1 if encoder else factors[top]
    blocks, convs = 0, 1
    yield "conv", "Conv_0", "conv_in", "conv_in", not encoder
    for torch_name, path, level in stages:
        for i in range(num_blocks):
            theirs = (f"ResBlock_{blocks}", f"{torch_name}.{i}", f"{path}_block_{i}")
            yield from _residual(*theirs, widens=channels != factors[level])
            channels, blocks = factors[level], blocks + 1
        if not encoder and path != "middle" and level > 0:
            # Pooling has no parameters: only the decoder's resampling shows here.
            yield "conv", f"Conv_{convs}", f"up.{level}.upsample_conv", f"{path}_upsample", True
            convs += 1
    yield "norm", "GroupNorm_0", "norm_out", "norm_out", True
    yield "conv", f"Conv_{convs}", "conv_out", "conv_out", True


def _residual(
    flax_name: str, torch_name: str, path: str, widens: bool
) -> Iterator[tuple[str, str, str, str, bool]]:
    for i in (1, 2):
        for kind, theirs in (("norm", "GroupNorm"), ("conv", "Conv")):
            names = f"{flax_name}/{theirs}_{i - 1}", f"{torch_name}.{kind}{i}", f"{path}/{kind}{i}"
            yield kind, *names, kind == "norm"
    if widens:
        names = f"{flax_name}/Conv_2", f"{torch_name}.nin_shortcut", f"{path}/shortcut_conv"
        yield "conv", *names, False


def tokenizer_layout(state: Mapping[str, Any]) -> Layout:
    """Return whether a tokenizer's keys are those of the Flax file or of the PyTorch port."""
    return "flax" if "quantizer/codebook" in state else "torch"


def tokenizer_config_from(state: Mapping[str, Any], image_size: int = 256) -> dict[str, Any]:
    """Return the tokenizer's config, read from the shapes.

    Args:
        state: {key: array} in either layout; only shapes are looked at.
        image_size: pixels along a side, which no shape tells.

    Returns:
        A complete config for tokenizers.build.

    Raises:
        InputError: an array that gives a size is missing or has other axes, or the residual blocks
            are not equally many in each level.
    """
    if tokenizer_layout(state) == "flax":
        # The decoder's convolutions outside blocks: the first, the last, and one between levels.
        total, num_levels = _count(_FLAX_BLOCK, state), _count(_FLAX_DECODER_CONV, state) - 1
        num_blocks = total // (num_levels + 1) if num_levels > 0 else 0
        if num_blocks * (num_levels + 1) != total or num_blocks == 0:
            raise InputError(
                f"the encoder has {total} residual blocks and the decoder {num_levels} levels, "
                f"expected as many blocks in each level and in the middle"
            )
        first, code, axis = "encoder/Conv_0/kernel", "quantizer/codebook", 3
        block_keys = [f"encoder/ResBlock_{i * num_blocks}/Conv_0" for i in range(num_levels)]
        widths = [shape_of(state, f"{key}/kernel", 4)[3] for key in block_keys]
    else:
        found = [(int(m[1]), int(m[2])) for m in map(_TORCH_BLOCK.match, state) if m]
        num_levels = 1 + max((level for level, _ in found), default=-1)
        num_blocks = 1 + max((block for _, block in found), default=-1)
        first, code, axis = "encoder.conv_in.weight", "quantize.embedding.weight", 0
        block_keys = [f"encoder.down.{i}.block.0.conv1" for i in range(num_levels)]
        widths = [shape_of(state, f"{key}.weight", 4)[0] for key in block_keys]
    ch = shape_of(state, first, 4)[axis]
    if any(width % ch for width in widths):
        raise InputError(
            f"the encoder's levels have {widths} channels, expected multiples of the first "
            f"convolution's {ch}: this is not Google's VQGAN"
        )
    n_embed, embed_dim = shape_of(state, code, 2)
    return {
        "name": "google_vqgan",
        "image_size": image_size,
        "ch": ch,
        "ch_mult": [width // ch for width in widths],
        "num_res_blocks": num_blocks,
        "embed_dim": embed_dim,
        "n_embed": n_embed,
    }


def _count(pattern: re.Pattern, keys: Mapping[str, Any]) -> int:
    return count_numbered((m[1] for m in map(pattern.match, keys) if m), len(keys), pattern.pattern)


def _flax(prefix: str, path: str, first: str = "kernel", bias: bool = True) -> list[Entry]:
    """Return a Flax Dense or Conv, or with first="scale" a norm.

    Its leaves are named alike in both.
    """
    return [same(f"{prefix}/{leaf}", f"{path}/{leaf}") for leaf in (first, "bias")[: 1 + bias]]
