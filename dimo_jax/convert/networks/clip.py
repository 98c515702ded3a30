"""CLIP checkpoints: which tensor of open_clip or of Hugging Face is which leaf of ours.

HPS v2 has open_clip's keys. A Hugging Face file may hold the text tower alone, as Meissonic's does.
Neither number of heads nor the activation is in any shape: a JSON beside the weights tells them,
or the widths of the published networks and --activation.
"""

import difflib
import math
from collections.abc import Mapping
from typing import Any

from dimo_jax.common.errors import InputError
from dimo_jax.convert.networks import clip_json
from dimo_jax.convert.networks.layouts import (
    Entry,
    attention,
    conv,
    count_layers,
    linear,
    norm,
    permuted,
    same,
    shape_of,
)

# The factor of the cosines in training, which no score uses; buffers; the sizes that OpenAI's files
# carry as tensors.
IGNORED = (
    r"^logit_scale$",
    r"(^|\.)attn_mask$",
    r"(^|\.)position_ids$",
    r"^(input_resolution|context_length|vocab_size)$",
)
HF_FIRST, _HF_IMAGE = (
    "text_model.embeddings.token_embedding.weight",
    "vision_model.embeddings.patch_embedding.weight",
)
# Heads of the published image towers by width: B, L, H, g, G. Only those of B and L are 64 wide.
_IMAGE_HEADS = {768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
_TEXT_HEADS = {width: width // 64 for width in (512, 640, 768, 1024, 1280)}


def is_hugging_face(state: Mapping[str, Any]) -> bool:
    """Return whether a state has the keys of Hugging Face, rather than open_clip's."""
    return HF_FIRST in state


def entries(config: Mapping[str, Any], hugging_face: bool) -> list[Entry]:
    """Return the table of a network.

    Args:
        config: of the network; depths and heads are looked at, and whether it has an image tower.
        hugging_face: as `is_hugging_face` tells.

    Returns:
        One entry for each tensor.
    """
    text, image = config["text"], config["image"]
    if hugging_face:
        table = [
            same(HF_FIRST, "text/token_embedding"),
            same("text_model.embeddings.position_embedding.weight", "text/position_embedding"),
            *norm("text_model.final_layer_norm", "text/last_norm"),
            permuted("text_projection.weight", "text/projection", (1, 0)),
            *_hugging_face_blocks("text_model", "text", text),
        ]
        if image is None:
            return table
        return [
            *table,
            same("vision_model.embeddings.class_embedding", "image/class_embedding"),
            same("vision_model.embeddings.position_embedding.weight", "image/position_embedding"),
            *conv("vision_model.embeddings.patch_embedding", "image/patch", bias=False),
            *norm("vision_model.pre_layrnorm", "image/first_norm"),  # sic
            *norm("vision_model.post_layernorm", "image/last_norm"),
            permuted("visual_projection.weight", "image/projection", (1, 0)),
            *_hugging_face_blocks("vision_model", "image", image),
        ]
    return [
        same("positional_embedding", "text/position_embedding"),
        same("token_embedding.weight", "text/token_embedding"),
        same("text_projection", "text/projection"),
        *norm("ln_final", "text/last_norm"),
        *_open_clip_blocks("transformer", "text", text),
        same("visual.class_embedding", "image/class_embedding"),
        same("visual.positional_embedding", "image/position_embedding"),
        same("visual.proj", "image/projection"),
        *conv("visual.conv1", "image/patch", bias=False),
        *norm("visual.ln_pre", "image/first_norm"),
        *norm("visual.ln_post", "image/last_norm"),
        *_open_clip_blocks("visual.transformer", "image", image),
    ]


def _open_clip_blocks(prefix: str, path: str, sizes: Mapping[str, int]) -> list[Entry]:
    table: list[Entry] = []
    for layer in range(sizes["depth"]):
        theirs, ours = f"{prefix}.resblocks.{layer}", f"{path}/block_{layer}"
        table += [
            *norm(f"{theirs}.ln_1", f"{ours}/attention_norm"),
            *attention(f"{theirs}.attn", f"{ours}/attention", sizes["heads"]),
            *norm(f"{theirs}.ln_2", f"{ours}/mlp_norm"),
            *linear(f"{theirs}.mlp.c_fc", f"{ours}/mlp_in"),
            *linear(f"{theirs}.mlp.c_proj", f"{ours}/mlp_out"),
        ]
    return table


def _hugging_face_blocks(prefix: str, path: str, sizes: Mapping[str, int]) -> list[Entry]:
    table: list[Entry] = []
    for layer in range(sizes["depth"]):
        theirs, ours = f"{prefix}.encoder.layers.{layer}", f"{path}/block_{layer}"
        for short, name in (("q", "query"), ("k", "key"), ("v", "value")):
            place = f"{theirs}.self_attn.{short}_proj", f"{ours}/attention/{name}"
            table += _projection(*place, sizes["heads"])
        kernel = Entry(
            f"{theirs}.self_attn.out_proj.weight",
            (tuple(f"{ours}/attention/out/kernel".split("/")),),
            lambda x: (x.T.reshape(sizes["heads"], -1, x.shape[0]),),
            lambda xs: xs[0].reshape(-1, xs[0].shape[-1]).T,
        )
        table += [
            kernel,
            same(f"{theirs}.self_attn.out_proj.bias", f"{ours}/attention/out/bias"),
            *norm(f"{theirs}.layer_norm1", f"{ours}/attention_norm"),
            *norm(f"{theirs}.layer_norm2", f"{ours}/mlp_norm"),
            *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp_in"),
            *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp_out"),
        ]
    return table


def _projection(key: str, path: str, heads: int) -> list[Entry]:
    """Return a Linear (D, D) whose rows are those of the heads, as leaves [D, heads, D/heads]."""

    def leaf(name: str) -> tuple[tuple[str, ...]]:
        return (tuple(f"{path}/{name}".split("/")),)

    return [
        Entry(
            f"{key}.weight",
            leaf("kernel"),
            lambda x: (x.T.reshape(x.shape[1], heads, -1),),
            lambda xs: xs[0].reshape(xs[0].shape[0], -1).T,
        ),
        Entry(
            f"{key}.bias",
            leaf("bias"),
            lambda x: (x.reshape(heads, -1),),
            lambda xs: xs[0].reshape(-1),
        ),
    ]


def config_from(
    state: Mapping[str, Any],
    activation: str | None = None,
    described: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the configuration of the network that a state dict belongs to.

    Args:
        state: {key: array}; only shapes are looked at, and only of what gives a size.
        activation: a key of models.clip.ACTIVATIONS; None where `described` tells it.
        described: the JSON beside the weights: Hugging Face's config.json, open_clip's
            open_clip_config.json, or one of its model configurations.

    Returns:
        What models.clip.build takes.

    Raises:
        InputError: a tensor that gives a size is missing or has other axes; the JSON tells other
            sizes, or something that this network does not have; the activation or the heads are
            stated nowhere.
    """
    text, image, projection = _sizes(state)
    stated: dict[str, Any] = {"text": {}, "image": {}}
    if described:
        stated = clip_json.settings_of(described)
    activation = _activation(activation, stated.get("activation"))
    widths = {"text": _TEXT_HEADS, "image": _IMAGE_HEADS}
    for name, tower in (("text", text), ("image", image)):
        if tower is None:
            continue
        wrong = [
            f"{name} {field} {value} (the weights have {tower[field]})"
            for field, value in stated[name].items()
            if field != "heads" and value is not None and value != tower[field]
        ]
        if stated.get("projection") not in (None, projection):
            wrong.append(f"projection {stated['projection']} (the weights have {projection})")
        if wrong:
            raise InputError(
                f"the JSON beside the weights tells {', '.join(wrong)}; give the one of this file"
            )
        heads = stated[name].get("heads") or widths[name].get(tower["width"])
        if not heads:
            raise InputError(
                f"no published {name} tower has the width {tower['width']} (there are "
                f"{', '.join(map(str, widths[name]))}) and no shape tells the heads; put its "
                "config.json or open_clip_config.json beside the weights"
            )
        tower["heads"] = heads
    return {
        "name": "clip",
        "activation": activation,
        "projection": projection,
        "text": text,
        "image": image,
    }


def _shape(state: Mapping[str, Any], key: str, rank: int) -> tuple[int, ...]:
    """shape_of, which names the nearest key where this one is missing."""
    if key not in state and (near := difflib.get_close_matches(key, state, n=1)):
        raise InputError(f"{key} is missing (the nearest key is {near[0]}); a size is read from it")
    return shape_of(state, key, rank)


def _sizes(state: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int] | None, int]:
    """Return both towers without their heads, and the projection."""
    if is_hugging_face(state):
        table, positions = HF_FIRST, "text_model.embeddings.position_embedding.weight"
        layers, mlp, projection = "text_model.encoder.layers.", "mlp.fc1", "text_projection.weight"
        patch, places = _HF_IMAGE, "vision_model.embeddings.position_embedding.weight"
        image_layers, axis = "vision_model.encoder.layers.", 0
    else:
        table, positions = "token_embedding.weight", "positional_embedding"
        layers, mlp, projection = "transformer.resblocks.", "mlp.c_fc", "text_projection"
        patch, places = "visual.conv1.weight", "visual.positional_embedding"
        image_layers, axis = "visual.transformer.resblocks.", 1
    vocabulary, width = _shape(state, table, 2)
    text = {
        "vocabulary": vocabulary,
        "context": _shape(state, positions, 2)[0],
        "width": width,
        "depth": count_layers(state, layers),
        "mlp_dim": _shape(state, f"{layers}0.{mlp}.weight", 2)[0],
    }
    total = _shape(state, projection, 2)[axis]
    # Of a Hugging Face file the text tower alone is a network; half an image tower is none.
    if is_hugging_face(state) and not any(key.startswith("vision_model.") for key in state):
        return text, None, total
    width, _, side, _ = _shape(state, patch, 4)
    image = {
        "image_size": math.isqrt(max(_shape(state, places, 2)[0] - 1, 0)) * side,
        "patch_size": side,
        "width": width,
        "depth": count_layers(state, image_layers),
        "mlp_dim": _shape(state, f"{image_layers}0.{mlp}.weight", 2)[0],
    }
    return text, image, total


def _activation(given: str | None, stated: str | None) -> str:
    found = stated if given is None else given
    if found is None:
        raise InputError(
            "neither the weights nor a JSON beside them tell the activation; give "
            "--activation=quick_gelu for OpenAI's weights (and DFN's, MetaCLIP's), "
            "--activation=gelu for LAION's and HPS's"
        )
    if given is not None and stated is not None and given != stated:
        raise InputError(f"--activation={given}, but the JSON beside the weights says {stated}")
    return found
