"""diffusers' VQModel as aMUSEd and Meissonic have it: a VQGAN without attention, pixels in [0, 1].

Its parts and axes are those of vqgan.py. The image is padded, merged and enlarged as there.
Source: huggingface/diffusers `VQModel` with mid_block_add_attention and lookup_from_codebook as in
MeissonFlow/Meissonic; Patil et al., arXiv 2401.01808.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from dimo_jax.common.trees import Tree
from dimo_jax.tokenizers.layers import as_tokenizer, check_config
from dimo_jax.tokenizers.tokenizer import Images, Tokenizer, Tokens
from dimo_jax.tokenizers.vqgan import VqganModule


def _module(config: Mapping[str, Any]) -> VqganModule:
    return VqganModule(
        ch=config["ch"],
        ch_mult=tuple(config["ch_mult"]),
        num_res_blocks=config["num_res_blocks"],
        attn_levels=(),
        z_channels=config["z_channels"],
        embed_dim=config["embed_dim"],
        n_embed=config["n_embed"],
        l2_codebook=False,
        middle_attention=False,
        unit_pixels=True,
    )


def latents(config: Mapping[str, Any], params: Tree, images: Images) -> Float[Array, "B h w E"]:
    """Return what the encoder gives before quantisation.

    Args:
        config: a complete config of `build`.
        params: the tokenizer's parameters.
        images: [B, H, W, 3] float32 in [0, 1].

    Returns:
        float32 latents, the output of the original's `quant_conv`.
    """
    return _module(config).bind({"params": params}).latents(jnp.asarray(images))


def pixels(config: Mapping[str, Any], params: Tree, tokens: Tokens) -> Float[Array, "B H W 3"]:
    """Return the decoder's output as the network gives it: nominally in [0, 1], not clipped.

    Args:
        config: a complete config of `build`.
        params: the tokenizer's parameters.
        tokens: [B, L] ids of a square grid.

    Returns:
        float32 pixels.
    """
    side = config["image_size"] // 2 ** (len(config["ch_mult"]) - 1)
    grid = jnp.asarray(tokens).reshape(-1, side, side)
    return _module(config).bind({"params": params}).pixels(grid)


def build(
    *,
    image_size: int = 1024,
    ch: int = 128,
    ch_mult: Sequence[int] = (1, 2, 2, 4, 6),
    num_res_blocks: int = 2,
    z_channels: int = 64,
    embed_dim: int = 64,
    n_embed: int = 8192,
) -> Tokenizer:
    """Return a VQModel, by default Meissonic's (146,244,675 parameters); fields as in vqgan.py.

    Args:
        image_size: pixels along a side, a multiple of 2^(levels - 1). The parameters do not depend
            on it.
        ch: channels of the finest level, a multiple of 32.
        ch_mult: the factor of `ch` for each level, finest first.
        num_res_blocks: in a level of the encoder; the decoder has one more.
        z_channels: Z, between encoder and quant_conv.
        embed_dim: E, the width of a code.
        n_embed: K, the codebook size.

    Returns:
        The tokenizer; `decode` clips to [0, 1].

    Raises:
        InputError: if a size is not a positive integer or does not fit the others.
    """
    config = {
        "name": "vq_model",
        "image_size": image_size,
        "ch": ch,
        "ch_mult": list(ch_mult),
        "num_res_blocks": num_res_blocks,
        "z_channels": z_channels,
        "embed_dim": embed_dim,
        "n_embed": n_embed,
    }
    check_config(config)
    return as_tokenizer(config, _module(config), lambda x: x)
