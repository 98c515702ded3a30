"""Convolutional VQGANs with attention: Taming's f16-1024 and, with a normalised codebook, LlamaGen.

Both are one network under other names of its tensors; vq_model.py is it without attention. Level
i has image_size / 2^i pixels along a side; the last level's pixels are the tokens, in row-major
order. B batch, H = W = image_size, h = w the grid's side, L = h w tokens, E = embed_dim,
Z = z_channels, K = n_embed.
Sources: CompVis/taming-transformers `VQModel`; FoundationVision/LlamaGen `vq_model.py`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dimo_jax.common.errors import InputError
from dimo_jax.common.trees import Tree
from dimo_jax.tokenizers.layers import (
    AttentionBlock,
    ResidualBlock,
    UpsamplingConv,
    as_tokenizer,
    check_config,
    conv,
    downsampling_conv,
    group_norm,
    l2_normalized,
    nearest_codes,
)
from dimo_jax.tokenizers.tokenizer import Images, Tokenizer, Tokens


class _Side(nn.Module):
    """What encoder and decoder have in common; `features` are those of the last convolution."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_levels: tuple[int, ...]
    middle_attention: bool
    features: int

    def _level(self, x: Array, level: int, num_blocks: int) -> Array:
        for i in range(num_blocks):
            x = ResidualBlock(self.ch * self.ch_mult[level], name=f"level_{level}_block_{i}")(x)
            if level in self.attn_levels:
                x = AttentionBlock(name=f"level_{level}_attention_{i}")(x)
        return x

    def _middle(self, x: Array) -> Array:
        x = ResidualBlock(x.shape[-1], name="middle_block_0")(x)
        if self.middle_attention:
            x = AttentionBlock(name="middle_attention")(x)
        return ResidualBlock(x.shape[-1], name="middle_block_1")(x)

    def _out(self, x: Array) -> Array:
        return conv(self.features, 3, "conv_out")(nn.swish(group_norm("norm_out")(x)))


class Encoder(_Side):
    """Image -> features at the last level."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w Z"]:
        """Take pixels in [-1, 1], or [0, 1] with unit_pixels."""
        x = conv(self.ch, 3, "conv_in")(x)
        for level in range(len(self.ch_mult)):
            x = self._level(x, level, self.num_res_blocks)
            if level < len(self.ch_mult) - 1:
                x = downsampling_conv(x.shape[-1], f"level_{level}_downsample")(x)
        return self._out(self._middle(x))


class Decoder(_Side):
    """Features at the last level -> image; one residual block more in each level."""

    @nn.compact
    def __call__(self, z: Float[Array, "B h w Z"]) -> Float[Array, "B H W 3"]:
        """Give pixels that belong in the range the encoder takes, but may lie outside."""
        x = self._middle(conv(self.ch * self.ch_mult[-1], 3, "conv_in")(z))
        for level in reversed(range(len(self.ch_mult))):
            x = self._level(x, level, self.num_res_blocks + 1)
            if level > 0:
                x = UpsamplingConv(name=f"level_{level}_upsample")(x)
        return self._out(x)


class VqganModule(nn.Module):
    """All parameters; see `build` for the sizes."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_levels: tuple[int, ...]
    z_channels: int
    embed_dim: int
    n_embed: int
    l2_codebook: bool
    middle_attention: bool = True
    unit_pixels: bool = False  # whether the network itself works in [0, 1], or in [-1, 1]

    def setup(self) -> None:
        """Build both sides, the 1x1 convolutions between Z and E channels, and the codes."""
        common = (self.ch, self.ch_mult, self.num_res_blocks, self.attn_levels)
        common += (self.middle_attention,)
        self.encoder = Encoder(*common, features=self.z_channels)
        self.decoder = Decoder(*common, features=3)
        self.quant_conv = nn.Conv(self.embed_dim, (1, 1))
        self.post_quant_conv = nn.Conv(self.z_channels, (1, 1))

        def uniform(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, minval=-1 / self.n_embed, maxval=1 / self.n_embed)

        self.codebook = self.param("codebook", uniform, (self.n_embed, self.embed_dim))

    def latents(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w E"]:
        """Return what is quantised, from pixels in [0, 1]; LlamaGen's are not yet normalised."""
        return self.quant_conv(self.encoder(images if self.unit_pixels else 2 * images - 1))

    def quantize(self, z: Float[Array, "B h w E"]) -> Int[Array, "B h w"]:
        """Return the nearest code of each latent."""
        return nearest_codes(l2_normalized(z) if self.l2_codebook else z, self._codes())

    def pixels(self, tokens: Int[Array, "B h w"]) -> Float[Array, "B H W 3"]:
        """Return the decoder's image, not clipped; ids past the codebook become its last one."""
        codes = self._codes()[jnp.clip(tokens, 0, self.n_embed - 1)]
        return self.decoder(self.post_quant_conv(codes))

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """There and back; for initialisation, which has to pass every parameter."""
        return self.pixels(self.quantize(self.latents(images)))

    def _codes(self) -> Float[Array, "K E"]:
        return l2_normalized(self.codebook) if self.l2_codebook else self.codebook


def _module(config: Mapping[str, Any]) -> VqganModule:
    other = ("name", "image_size")
    sizes: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k not in other
    }
    return VqganModule(**sizes)


def latents(config: Mapping[str, Any], params: Tree, images: Images) -> Float[Array, "B h w E"]:
    """Return what the encoder gives before quantisation (before normalisation too).

    Args:
        config: a complete config of `build`.
        params: the tokenizer's parameters.
        images: [B, H, W, 3] float32 in [0, 1].

    Returns:
        float32 latents, the output of the original's `quant_conv`.
    """
    return _module(config).bind({"params": params}).latents(jnp.asarray(images))


def pixels(config: Mapping[str, Any], params: Tree, tokens: Tokens) -> Float[Array, "B H W 3"]:
    """Return the decoder's output as the network gives it: nominally in [-1, 1], not clipped.

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
    name: Literal["vqgan", "llamagen"] = "vqgan",
    image_size: int = 256,
    ch: int = 128,
    ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
    num_res_blocks: int = 2,
    attn_levels: Sequence[int] = (4,),
    z_channels: int = 256,
    embed_dim: int = 256,
    n_embed: int = 1024,
    l2_codebook: bool = False,
) -> Tokenizer:
    """Return a VQGAN; the defaults are those of Taming's f16-1024.

    The fields' names those of its config.

    Args:
        name: "vqgan" or "llamagen": whose checkpoints it reads; nothing else depends on it.
        image_size: pixels along a side, a multiple of 2^(levels - 1). The parameters do not depend
            on it: a network trained at 256 also takes 512.
        ch: channels of the first convolution, a multiple of 32.
        ch_mult: the factor of `ch` for each level, finest first.
        num_res_blocks: in a level of the encoder; the decoder has one more.
        attn_levels: levels with attention after each residual block. The original names them by
            their resolution at 256 pixels; the layers stay where they are at any other size.
        z_channels: Z, between encoder and quant_conv.
        embed_dim: E, the width of a code.
        n_embed: K, the codebook size.
        l2_codebook: whether latents and codes are scaled to length 1, in encoding and decoding.

    Returns:
        The tokenizer. Its `decode` gives clip((x + 1) / 2, 0, 1): rounding 255 times that half up
        is the originals' uint8 = clip(127.5 x + 128, 0, 255) truncated. The convolutions run at
        JAX's default precision; only the search of the nearest code asks for the highest.

    Raises:
        InputError: if a size is not a positive integer or does not fit the others.
    """
    config = {
        "name": name,
        "image_size": image_size,
        "ch": ch,
        "ch_mult": list(ch_mult),
        "num_res_blocks": num_res_blocks,
        "attn_levels": list(attn_levels),
        "z_channels": z_channels,
        "embed_dim": embed_dim,
        "n_embed": n_embed,
        "l2_codebook": l2_codebook,
    }
    check_config({k: v for k, v in config.items() if k not in ("attn_levels", "l2_codebook")})
    if not set(attn_levels) <= set(range(len(ch_mult))):
        raise InputError(
            f"attn_levels of the tokenizer {name!r} is {list(attn_levels)}, expected levels among "
            f"0 .. {len(ch_mult) - 1}"
        )
    return as_tokenizer(config, _module(config), lambda x: (x + 1) / 2)


# VQ-16, the tokenizer of Halton-MaskGIT.
build_llamagen = functools.partial(
    build, name="llamagen", embed_dim=8, n_embed=16384, l2_codebook=True
)
