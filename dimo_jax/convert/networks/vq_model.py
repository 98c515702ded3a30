"""diffusers' VQModel: which tensor of the file is which parameter, and what config.json says.

Meissonic's has no attention; with it, Taming's VQGAN is the same network and is written as one.

Its decoder counts levels in the order in which they run, lowest resolution first; ours count from
the finest.
"""

from collections.abc import Mapping
from typing import Any

from dimo_jax.common import readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import quoted
from dimo_jax.convert.networks.layouts import Entry, conv, norm, residual, same

# What config.json must say, since the network has no other way.
_FIXED = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_type": "group",
    "mid_block_add_attention": False,
}
# In the file as it is published, without a meaning here.
_WRITTEN = {"_class_name": "VQModel", "_diffusers_version": "0.30.2", "force_upcast": True}
_WRITTEN |= {"lookup_from_codebook": True, "sample_size": 32, "scaling_factor": 0.18215}


def entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the table of a tokenizer.

    Args:
        config: a complete config of `tokenizers.vq_model.build`, or of `vqgan.build`.

    Returns:
        One entry for each tensor, 277 for the published one.

    Source: the state dict of diffusers' `VQModel`.
    """
    return [
        *_side(config, "encoder"),
        *conv("quant_conv", "quant_conv"),
        same("quantize.embedding.weight", "codebook"),
        *conv("post_quant_conv", "post_quant_conv"),
        *_side(config, "decoder"),
    ]


def _side(config: Mapping[str, Any], side: str) -> list[Entry]:
    encoder, factors = side == "encoder", config["ch_mult"]
    top = len(factors) - 1
    # The factor of the channels that come into each level.
    incoming = [1, *factors[:-1]] if encoder else [*factors[1:], factors[-1]]
    table = conv(f"{side}.conv_in", f"{side}/conv_in")
    for level, factor in enumerate(factors):
        number = level if encoder else top - level
        prefix, path = f"{side}.{'down' if encoder else 'up'}_blocks.{number}", f"level_{level}"
        for i in range(config["num_res_blocks"] + (not encoder)):
            shortcut = "conv_shortcut" if i == 0 and incoming[level] != factor else None
            table += residual(f"{prefix}.resnets.{i}", f"{side}/{path}_block_{i}", shortcut)
            if level in config.get("attn_levels", ()):
                table += _attention(f"{prefix}.attentions.{i}", f"{side}/{path}_attention_{i}")
        if encoder and level < top:
            table += conv(f"{prefix}.downsamplers.0.conv", f"{side}/{path}_downsample")
        if not encoder and level > 0:
            table += conv(f"{prefix}.upsamplers.0.conv", f"{side}/{path}_upsample")
    for i in (0, 1):
        table += residual(f"{side}.mid_block.resnets.{i}", f"{side}/middle_block_{i}")
    if _has_attention(config):
        table += _attention(f"{side}.mid_block.attentions.0", f"{side}/middle_attention")
    table += norm(f"{side}.conv_norm_out", f"{side}/norm_out")
    return table + conv(f"{side}.conv_out", f"{side}/conv_out")


def _has_attention(config: Mapping[str, Any]) -> bool:
    return config["name"] != "vq_model"


def _attention(prefix: str, path: str) -> list[Entry]:
    """Return attention over pixels, whose 1x1 convolutions are linear layers there."""
    table = norm(f"{prefix}.group_norm", f"{path}/norm")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "out"}
    for theirs, ours in names.items():
        key, kernel = f"{prefix}.{theirs}.weight", ((*path.split("/"), ours, "kernel"),)
        table += [
            Entry(key, kernel, lambda x: (x.T[None, None],), lambda xs: xs[0][0, 0].T),
            same(f"{prefix}.{theirs}.bias", f"{path}/{ours}/bias"),
        ]
    return table


@readers.well_typed("its config.json")
def config_from(fields: Mapping[str, Any], image_size: int = 1024) -> dict[str, Any]:
    """Return the tokenizer's config.

    Args:
        fields: of config.json; those that are left out have diffusers' defaults.
        image_size: pixels along a side.

    Returns:
        A complete config for `tokenizers.build`.

    Raises:
        InputError: a size is missing, or it is a VQModel of another kind.
    """
    channels, latent = fields.get("block_out_channels"), fields.get("latent_channels")
    wrong = [
        f"{name} {quoted(fields[name])} (expected {value!r})"
        for name, value in _FIXED.items()
        if fields.get(name, value) != value
    ]
    # Its default is True: left out, there is attention in the middle.
    if "mid_block_add_attention" not in fields:
        wrong.append("no mid_block_add_attention (expected False)")
    for name, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        types = fields.get(f"{name}_block_types", [kind] * len(channels or ()))
        if set(types) - {kind} or len(types) != len(channels or ()):
            wrong.append(f"{name}_block_types {quoted(types)} (expected {kind} for each level)")
    if not channels or any(c % channels[0] for c in channels):
        wrong.append(f"block_out_channels {quoted(channels)} (expected multiples of the first)")
    if wrong or not channels:
        raise InputError(f"this is another VQModel than Meissonic's: {', '.join(wrong)}")
    return {
        "name": "vq_model",
        "image_size": image_size,
        "ch": channels[0],
        "ch_mult": [c // channels[0] for c in channels],
        "num_res_blocks": fields.get("layers_per_block", 1),
        "z_channels": latent,
        "embed_dim": fields.get("vq_embed_dim") or latent,
        "n_embed": fields.get("num_vq_embeddings", 256),
    }


def config_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json with which diffusers builds the same network.

    The inverse of config_from.

    Args:
        config: as for `entries`.

    Raises:
        InputError: VQModel has no such network.
    """
    if config.get("l2_codebook"):
        raise InputError("its codes are of length 1, which diffusers' VQModel knows nothing of")
    differs = config["embed_dim"] != config["z_channels"]
    levels, with_attention = range(len(config["ch_mult"])), config.get("attn_levels", ())
    kinds = ["Attn" if level in with_attention else "" for level in levels]
    return {
        **_WRITTEN,
        **_FIXED,
        "block_out_channels": [config["ch"] * factor for factor in config["ch_mult"]],
        "mid_block_add_attention": _has_attention(config),
        "down_block_types": [f"{kind}DownEncoderBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)],
        "layers_per_block": config["num_res_blocks"],
        "latent_channels": config["z_channels"],
        "num_vq_embeddings": config["n_embed"],
        "vq_embed_dim": config["embed_dim"] if differs else None,
    }
