"""Taming's VQGAN and LlamaGen's VQ: which tensor of the file is which parameter, and the sizes.

The two files hold one network (`tokenizers.vqgan`) under different names. Taming counts the
decoder's levels from the finest, as we do, and runs them backwards; LlamaGen counts them in the
order in which they run.
"""

from collections.abc import Mapping
from typing import Any

from dimo_jax.common import readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.convert.networks.layouts import (
    Entry,
    conv,
    count_layers,
    norm,
    residual,
    same,
    shape_of,
)

# Left out before a table is applied: Taming's discriminator and perceptual network, and LlamaGen's
# record of recently used codes.
IGNORED = (r"^loss\.", r"^quantize\.codebook_used$")


def entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the table of a tokenizer.

    Args:
        config: a complete config of `tokenizers.vqgan.build`; its name, "vqgan" or "llamagen",
            decides on the keys.

    Returns:
        One entry for each tensor.

    Source: the state dicts of taming-transformers' and LlamaGen's `VQModel`.
    """
    return [
        *_side(config, "encoder"),
        *conv("quant_conv", "quant_conv"),
        same("quantize.embedding.weight", "codebook"),
        *conv("post_quant_conv", "post_quant_conv"),
        *_side(config, "decoder"),
    ]


def _side(config: Mapping[str, Any], side: str) -> list[Entry]:
    encoder, taming = side == "encoder", config["name"] == "vqgan"
    factors = config["ch_mult"]
    top = len(factors) - 1
    # The factor of the channels that come into each level.
    incoming = [1, *factors[:-1]] if encoder else [*factors[1:], factors[-1]]
    resample, end = ("downsample", top) if encoder else ("upsample", 0)
    table = conv(f"{side}.conv_in", f"{side}/conv_in")
    for level, factor in enumerate(factors):
        if taming:
            prefix, block = f"{side}.{'down' if encoder else 'up'}.{level}", "block"
        else:
            prefix, block = f"{side}.conv_blocks.{level if encoder else top - level}", "res"
        path = f"{side}/level_{level}"
        for i in range(config["num_res_blocks"] + (not encoder)):
            shortcut = "nin_shortcut" if i == 0 and incoming[level] != factor else None
            table += residual(f"{prefix}.{block}.{i}", f"{path}_block_{i}", shortcut)
            if level in config["attn_levels"]:
                table += _attention(f"{prefix}.attn.{i}", f"{path}_attention_{i}")
        if level != end:
            table += conv(f"{prefix}.{resample}.conv", f"{path}_{resample}")
    first, attention, second = ("block_1", "attn_1", "block_2") if taming else "012"
    table += residual(f"{side}.mid.{first}", f"{side}/middle_block_0")
    table += _attention(f"{side}.mid.{attention}", f"{side}/middle_attention")
    table += residual(f"{side}.mid.{second}", f"{side}/middle_block_1")
    table += norm(f"{side}.norm_out", f"{side}/norm_out")
    return table + conv(f"{side}.conv_out", f"{side}/conv_out")


def _attention(prefix: str, path: str) -> list[Entry]:
    table = norm(f"{prefix}.norm", f"{path}/norm")
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "out")):
        table += conv(f"{prefix}.{theirs}", f"{path}/{ours}")
    return table


def config_from(
    state: Mapping[str, Any], model_yaml: str | None = None, image_size: int | None = None
) -> dict[str, Any]:
    """Return the tokenizer's config, read from the shapes.

    What the shapes do not say is taken from the family: LlamaGen's codes are normalised, Taming's
    are not.

    Args:
        state: {key: anything with a shape}; other keys do not disturb.
        model_yaml: the text of Taming's model.yaml, which must agree with the shapes.
        image_size: pixels along a side; None for model.yaml's resolution, or else 256.

    Returns:
        A complete config for `tokenizers.build`.

    Raises:
        InputError: a tensor that tells a size is missing or has other axes, or model.yaml cannot
            be read or says something else.
    """
    llamagen = any(key.startswith("encoder.conv_blocks.") for key in state)
    levels, block = ("encoder.conv_blocks.", "res") if llamagen else ("encoder.down.", "block")
    ch = shape_of(state, "encoder.conv_in.weight", 4)[0]
    # Without any level the next line names the tensor that is missing.
    num_levels = max(count_layers(state, levels), 1)
    first_convs = [f"{levels}{level}.{block}.0.conv1.weight" for level in range(num_levels)]
    widths = [shape_of(state, key, 4)[0] for key in first_convs]
    num_blocks, num_attentions = (
        [count_layers(state, f"{levels}{level}.{part}.") for level in range(num_levels)]
        for part in (block, "attn")
    )
    if any(width % ch for width in widths):
        raise InputError(
            f"the encoder's levels have {widths} channels, expected multiples of the first "
            f"convolution's {ch}: this is not a VQGAN"
        )
    n_embed, embed_dim = shape_of(state, "quantize.embedding.weight", 2)
    sizes = {
        "ch": ch,
        "ch_mult": [width // ch for width in widths],
        "num_res_blocks": max(num_blocks),
        "attn_levels": [level for level, num in enumerate(num_attentions) if num],
        "z_channels": shape_of(state, "encoder.conv_out.weight", 4)[0],
        "embed_dim": embed_dim,
        "n_embed": n_embed,
    }
    resolution = 256
    if model_yaml is not None:
        stated, resolution = _read_yaml(model_yaml)
        wrong = [f"{k} {shown(stated[k])} and not {v}" for k, v in sizes.items() if stated[k] != v]
        if wrong:
            raise InputError(
                f"model.yaml says {', '.join(wrong)} as the checkpoint's shapes do: take the "
                "model.yaml that belongs to the checkpoint, or none"
            )
    return {
        "name": "llamagen" if llamagen else "vqgan",
        "image_size": resolution if image_size is None else image_size,
        **sizes,
        "l2_codebook": llamagen,
    }


def _read_yaml(text: str) -> tuple[dict[str, Any], int]:
    """Return the sizes in model.yaml under our names, and the resolution it was trained at."""
    try:
        params = readers.parse_yaml(text, "model.yaml")["model"]["params"]
        inner = params["ddconfig"]
        resolution = inner["resolution"]
        stated = {k: inner[k] for k in ("ch", "num_res_blocks", "z_channels")}
        stated |= {k: params[k] for k in ("embed_dim", "n_embed")}
        stated["ch_mult"] = list(inner["ch_mult"])
        sides = [resolution // 2**level for level in range(len(stated["ch_mult"]))]
        stated["attn_levels"] = [i for i, s in enumerate(sides) if s in inner["attn_resolutions"]]
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        reason = f"{type(error).__name__}: {shown(error)}"
        raise InputError(
            f"model.yaml cannot be read ({reason}), expected model.params with embed_dim, n_embed "
            "and ddconfig: take the file that belongs to the checkpoint, or none"
        ) from error
    return stated, resolution
