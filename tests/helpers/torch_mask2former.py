"""transformers' Mask2Former of any size, with random weights, and these in mmdet's spelling."""

from tests.helpers import torch_peers  # noqa: F401

# isort: split

import re

import numpy as np
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

# Small, with a shift in the widest and the narrowest maps and a level that is seen twice.
SMALL = {
    "name": "mask2former",
    "num_classes": 5,
    "num_queries": 12,
    "width": 32,
    "heads": 4,
    "swin": {"width": 8, "depth": [2, 1, 1, 2], "heads": [1, 2, 4, 8], "window": 7},
    "pixel_decoder": {"depth": 1, "mlp_dim": 48},
    "decoder": {"depth": 4, "mlp_dim": 64},
}
_EMBEDDER = "model.transformer_module.decoder.mask_predictor.mask_embedder"
# (transformers', mmdet's), replaced one after the other.
_NAMES = (
    ("backbone.embeddings.patch_embeddings.projection", "backbone.patch_embed.projection"),
    ("backbone.embeddings.norm", "backbone.patch_embed.norm"),
    ("backbone.encoder.layers.", "backbone.stages."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".attention.relative_position_bias.", ".attn.w_msa."),
    (".attention.o_proj.", ".attn.w_msa.proj."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
    ("model.pixel_level_module.decoder.", "panoptic_head.pixel_decoder."),
    ("pixel_decoder.level_embed", "pixel_decoder.level_encoding.weight"),
    (".adapter_1.0.", ".lateral_convs.0.conv."),
    (".adapter_1.1.", ".lateral_convs.0.gn."),
    (".layer_1.0.", ".output_convs.0.conv."),
    (".layer_1.1.", ".output_convs.0.gn."),
    (".mask_projection.", ".mask_feature."),
    (f"{_EMBEDDER}.0.0", "panoptic_head.mask_embed.0"),
    (f"{_EMBEDDER}.1.0", "panoptic_head.mask_embed.2"),
    (f"{_EMBEDDER}.2.0", "panoptic_head.mask_embed.4"),
    ("model.transformer_module.decoder.layernorm.", "panoptic_head.transformer_decoder.post_norm."),
    ("model.transformer_module.decoder.", "panoptic_head.transformer_decoder."),
    ("model.transformer_module.queries_embedder.", "panoptic_head.query_embed."),
    ("model.transformer_module.queries_features.", "panoptic_head.query_feat."),
    ("model.transformer_module.level_embed.", "panoptic_head.level_embed."),
    ("class_predictor.", "panoptic_head.cls_embed."),
)  # fmt: skip


def build(config, seed=0):
    """The network with weights that keep signals alive: norms near 1, offsets of some pixels."""
    swin = config["swin"]
    backbone = SwinConfig(
        embed_dim=swin["width"],
        depths=swin["depth"],
        num_heads=swin["heads"],
        window_size=swin["window"],
        out_features=["stage1", "stage2", "stage3", "stage4"],
        drop_path_rate=0.0,
    )
    sizes = {name: config["width"] for name in ("feature_size", "mask_feature_size", "hidden_dim")}
    described = Mask2FormerConfig(
        backbone_config=backbone,
        **sizes,
        encoder_layers=config["pixel_decoder"]["depth"],
        encoder_feedforward_dim=config["pixel_decoder"]["mlp_dim"],
        decoder_layers=config["decoder"]["depth"] + 1,
        dim_feedforward=config["decoder"]["mlp_dim"],
        num_attention_heads=config["heads"],
        num_queries=config["num_queries"],
        num_labels=config["num_classes"],
    )
    network = Mask2FormerForUniversalSegmentation(described).eval()
    numbers = np.random.default_rng(seed)
    state = {}
    for key, value in network.state_dict().items():
        shape = tuple(value.shape)
        drawn = numbers.normal(size=shape)
        if "queries_" in key or key.endswith(("level_embed", "level_embed.weight")):
            pass
        elif len(shape) == 1 or "bias_table" in key:
            drawn = 0.2 * drawn + key.endswith("weight")
        else:
            drawn = drawn / np.sqrt(np.prod(shape[1:]))
        if "sampling_offsets" in key:
            drawn = 3 * drawn
        state[key] = torch.from_numpy(drawn.astype(np.float32))
    network.load_state_dict(state)
    return network


def forward(network, images):
    """(logits of classes, logits of masks) of NumPy images [B, H, W, 3]."""
    with torch.no_grad():
        found = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return found.class_queries_logits.numpy(), found.masks_queries_logits.numpy()


def mmdet_state(network, version=2):
    """The weights as a file of mmdet 2.x or 3.x has them, the buffers of its windows included."""
    theirs = {k: x.numpy() for k, x in network.state_dict().items()}
    state = {}
    for key, value in _joined(theirs).items():
        if "downsample" in key:
            value = _unfolded(value)
        state[_renamed(key, version)] = value
    for key in [key for key in state if key.endswith("bias_table")]:
        side = (round(len(state[key]) ** 0.5) + 1) // 2
        name = key.replace("bias_table", "index")
        state[name] = np.zeros((side**2, side**2), np.int64)
    return state


def _joined(state):
    """Query, key and value of one tensor where mmdet has one."""
    result = {}
    for key, value in state.items():
        if key.startswith("criterion.") or ".swin.layernorm." in key:
            continue  # of the training
        found = re.match(r"(.*)\.([qkv])_proj\.(weight|bias)$", key)
        if not found:
            result[key] = value
        elif found[2] == "q":
            parts = [state[f"{found[1]}.{name}_proj.{found[3]}"] for name in "qkv"]
            joint = "qkv." if "pixel_level" in key else "in_proj_"
            result[f"{found[1]}.{joint}{found[3]}"] = np.concatenate(parts)
    return result


def _unfolded(value):
    """The columns of a merge: (column, row, channel) there, (channel, row, column) in mmdet."""
    channels = value.shape[-1] // 4
    parts = value.reshape(*value.shape[:-1], 2, 2, channels)
    axes = list(range(value.ndim - 1))
    n = len(axes)
    return np.ascontiguousarray(parts.transpose(*axes, n + 2, n + 1, n).reshape(value.shape))


def _renamed(key, version):
    name = key.replace("model.pixel_level_module.encoder.swin.", "backbone.")
    name = re.sub(
        r"^model\.pixel_level_module\.encoder\.hidden_states_norms\.stage(\d)", _norm, name
    )
    for old, new in _NAMES:
        name = name.replace(old, new)
    name = re.sub(r"\.attention\.qkv\.", ".attn.w_msa.qkv.", name)
    name = re.sub(r"input_projections\.(\d)\.0\.", r"input_convs.\1.conv.", name)
    name = re.sub(r"input_projections\.(\d)\.1\.", r"input_convs.\1.gn.", name)
    if "panoptic_head.pixel_decoder.encoder" in name:
        name = name.replace("self_attn_layer_norm", "norms.0").replace(
            "final_layer_norm", "norms.1"
        )
        attention = "attentions.0" if version == 2 else "self_attn"
        name = name.replace(".self_attn.", f".{attention}.")
    if "panoptic_head.transformer_decoder.layers" in name:
        for i, part in enumerate(("cross_attn", "self_attn", "final")):
            name = name.replace(f".{part}_layer_norm.", f".norms.{i}.")
            attention = f"attentions.{i}" if version == 2 else part
            name = name.replace(f".{part}.", f".{attention}.attn.")
    mlp = "ffns.0" if version == 2 else "ffn"
    return name.replace(".fc1.", f".{mlp}.layers.0.0.").replace(".fc2.", f".{mlp}.layers.1.")


def _norm(found):
    return f"backbone.norm{int(found[1]) - 1}"
