"""Mask2Former of OpenMMLab: which tensor of its published files is which parameter.

Files of mmdet 2.x, of which GenEval names one, and of 3.x differ in the names of the layers' parts
alone. Facebook's own weights are of the same network and another training.
"""

from collections.abc import Mapping
from typing import Any

from dimo_jax.common.errors import InputError
from dimo_jax.convert.networks.layouts import (
    Entry,
    attention,
    conv,
    count_layers,
    linear,
    norm,
    same,
    shape_of,
)
from dimo_jax.models.pixel_decoder import LEVELS, POINTS
from dimo_jax.models.swin import STAGES

# The key that no other family has; then those of Facebook's own files, which are refused.
FIRST = "panoptic_head.query_feat.weight"
FACEBOOK = (
    "model.transformer_module.queries_features.weight",
    "sem_seg_head.predictor.query_feat.weight",
)
# Fixed by the window's size, in each block.
IGNORED = (r"\.relative_position_index$",)
_FILE = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth"
_PANOPTIC_CLASSES = 133

_PIXELS, _DECODER = "panoptic_head.pixel_decoder", "panoptic_head.transformer_decoder"
# The parts of a layer in files of 2.x and of 3.x.
_PARTS = (
    {"encoder": "attentions.0", "cross": "attentions.0", "self": "attentions.1", "mlp": "ffns.0"},
    {"encoder": "self_attn", "cross": "cross_attn", "self": "self_attn", "mlp": "ffn"},
)


def entries(config: Mapping[str, Any], state: Mapping[str, Any]) -> list[Entry]:
    """Return the table of the network, in the spelling of a file.

    Args:
        config: the network's.
        state: {key: anything}; its keys tell mmdet 2.x from 3.x.
    """
    third = any(key.startswith(f"{_DECODER}.layers.0.cross_attn.") for key in state)
    parts = _PARTS[third]
    return [*_swin(config["swin"]), *_pixel_decoder(config, parts), *_decoder(config, parts)]


def _swin(config: Mapping[str, Any]) -> list[Entry]:
    table = conv("backbone.patch_embed.projection", "backbone/patch")
    table += norm("backbone.patch_embed.norm", "backbone/patch_norm")
    for stage, depth in enumerate(config["depth"]):
        for i in range(depth):
            key = f"backbone.stages.{stage}.blocks.{i}"
            path = f"backbone/stage_{stage}_block_{i}"
            table += norm(f"{key}.norm1", f"{path}/attention_norm")
            window = f"{key}.attn.w_msa"
            bias = f"{window}.relative_position_bias_table"
            table.append(same(bias, f"{path}/attention/bias_table"))
            table += linear(f"{window}.qkv", f"{path}/attention/qkv")
            table += linear(f"{window}.proj", f"{path}/attention/out")
            table += norm(f"{key}.norm2", f"{path}/mlp_norm")
            table += linear(f"{key}.ffn.layers.0.0", f"{path}/mlp_in")
            table += linear(f"{key}.ffn.layers.1", f"{path}/mlp_out")
        if stage < STAGES - 1:
            key, path = f"backbone.stages.{stage}.downsample", f"backbone/merge_{stage}"
            table += norm(f"{key}.norm", f"{path}/norm")
            table += linear(f"{key}.reduction", f"{path}/reduction", bias=False)
        table += norm(f"backbone.norm{stage}", f"backbone/norm_{stage}")
    return table


def _pixel_decoder(config: Mapping[str, Any], parts: Mapping[str, str]) -> list[Entry]:
    table = []
    for i in range(LEVELS):
        table += conv(f"{_PIXELS}.input_convs.{i}.conv", f"pixels/input_{i}")
        table += norm(f"{_PIXELS}.input_convs.{i}.gn", f"pixels/input_norm_{i}")
    names = {"sampling_offsets": "", "attention_weights": "", "value_proj": "value"}
    for i in range(config["pixel_decoder"]["depth"]):
        key, path = f"{_PIXELS}.encoder.layers.{i}", f"pixels/layer_{i}"
        for theirs, ours in (names | {"output_proj": "out"}).items():
            table += linear(f"{key}.{parts['encoder']}.{theirs}", f"{path}/{ours or theirs}")
        table += _mlp_and_norms(key, path, parts, ("attention_norm", "mlp_norm"))
    table.append(same(f"{_PIXELS}.level_encoding.weight", "pixels/level_encoding"))
    for theirs, ours in (("lateral_convs.0", "lateral"), ("output_convs.0", "output")):
        table += conv(f"{_PIXELS}.{theirs}.conv", f"pixels/{ours}", bias=False)
        table += norm(f"{_PIXELS}.{theirs}.gn", f"pixels/{ours}_norm")
    return table + conv(f"{_PIXELS}.mask_feature", "pixels/mask_feature")


def _decoder(config: Mapping[str, Any], parts: Mapping[str, str]) -> list[Entry]:
    table = []
    for i in range(config["decoder"]["depth"]):
        key, path = f"{_DECODER}.layers.{i}", f"layer_{i}"
        for name in ("cross", "self"):
            table += attention(
                f"{key}.{parts[name]}.attn", f"{path}/{name}_attention", config["heads"]
            )
        table += _mlp_and_norms(key, path, parts, ("cross_norm", "self_norm", "mlp_norm"))
    table += norm(f"{_DECODER}.post_norm", "last_norm")
    for theirs, ours in (
        ("query_embed", "query_place"),
        ("query_feat", "query_feature"),
        ("level_embed", "level_embedding"),
    ):
        table.append(same(f"panoptic_head.{theirs}.weight", ours))
    table += linear("panoptic_head.cls_embed", "class_logits")
    for i in range(3):  # a ReLU stands between them
        table += linear(f"panoptic_head.mask_embed.{2 * i}", f"mask_embedding_{i}")
    return table


def _mlp_and_norms(
    key: str, path: str, parts: Mapping[str, str], norms: tuple[str, ...]
) -> list[Entry]:
    table = linear(f"{key}.{parts['mlp']}.layers.0.0", f"{path}/mlp_in")
    table += linear(f"{key}.{parts['mlp']}.layers.1", f"{path}/mlp_out")
    for i, name in enumerate(norms):
        table += norm(f"{key}.norms.{i}", f"{path}/{name}")
    return table


def config_from(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the network's config, read from the shapes.

    Args:
        state: {key: anything with a shape}; other keys do not disturb.

    Returns:
        What models.build takes.

    Raises:
        InputError: a tensor that tells a size is missing or has other axes; or the file is
            Facebook's, or one of panoptic segmentation.
    """
    if any(key in state for key in FACEBOOK):
        raise InputError(
            "these are Facebook's own weights, of another training than OpenMMLab's and for "
            "research alone (CC-BY-NC 4.0): they are another detector, whose GenEval no published "
            f"one compares with; give {_FILE} of OpenMMLab"
        )
    num_queries, width = shape_of(state, FIRST, 2)
    rows = shape_of(state, "panoptic_head.cls_embed.weight", 2)[0]
    if rows == _PANOPTIC_CLASSES + 1:
        raise InputError(
            f"it has {_PANOPTIC_CLASSES} classes, those of panoptic segmentation, and GenEval is "
            f"of 80 objects; give {_FILE}, whose name has no -panoptic"
        )
    depth = [count_layers(state, f"backbone.stages.{i}.blocks.") for i in range(STAGES)]
    tables = [
        shape_of(state, f"backbone.stages.{i}.blocks.0.attn.w_msa.relative_position_bias_table", 2)
        for i in range(STAGES)
    ]
    layers = f"{_PIXELS}.encoder.layers."
    spelt = next((x for x in _PARTS if f"{layers}0.{x['mlp']}.layers.0.0.weight" in state), None)
    parts = spelt or _PARTS[0]
    points = shape_of(state, f"{layers}0.{parts['encoder']}.attention_weights.weight", 2)[0]
    return {
        "name": "mask2former",
        "num_classes": rows - 1,
        "num_queries": num_queries,
        "width": width,
        "heads": points // (LEVELS * POINTS),
        "swin": {
            "width": shape_of(state, "backbone.patch_embed.projection.weight", 4)[0],
            "depth": depth,
            "heads": [heads for _, heads in tables],
            "window": (round(tables[0][0] ** 0.5) + 1) // 2,
        },
        "pixel_decoder": {
            "depth": count_layers(state, layers),
            "mlp_dim": shape_of(state, f"{layers}0.{parts['mlp']}.layers.0.0.weight", 2)[0],
        },
        "decoder": {
            "depth": count_layers(state, f"{_DECODER}.layers."),
            "mlp_dim": shape_of(state, f"{_DECODER}.layers.0.{parts['mlp']}.layers.0.0.weight", 2)[
                0
            ],
        },
    }
