"""The VQGAN of Google's original MaskGIT: convolutions only, pixels in [0, 1] on both sides.

Level i has image_size / 2^i pixels along a side; the last level's pixels are the tokens, in
row-major order. Its codes are not those of Taming's VQGAN: ids cannot be exchanged. B batch,
H = W = image_size, h = w the grid's side, L = h w tokens, E = embed_dim.
Source: google-research/maskgit, nets/vqgan_tokenizer.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dimo_jax.common.trees import Tree
from dimo_jax.tokenizers.layers import (
    ResidualBlock,
    UpsamplingConv,
    as_tokenizer,
    check_config,
    conv,
    group_norm,
    nearest_codes,
)
from dimo_jax.tokenizers.tokenizer import Images, Tokenizer, Tokens


class _Side(nn.Module):
    """What encoder and decoder have in common."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int

    def _blocks(self, x: Array, factor: int, name: str) -> Array:
        for i in range(self.num_res_blocks):
            # shortcut="output" is the original's slip, with which its weights were trained.
            block = ResidualBlock(
                self.ch * factor, use_bias=False, shortcut="output", name=f"{name}_block_{i}"
            )
            x = block(x)
        return x


class Encoder(_Side):
    """Image -> latents at the last level."""

    embed_dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w E"]:
        """Take pixels in [0, 1], as they are."""
        x = conv(self.ch, 3, "conv_in", use_bias=False)(x)
        for level, factor in enumerate(self.ch_mult):
            x = self._blocks(x, factor, f"level_{level}")
            if level < len(self.ch_mult) - 1:
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = self._blocks(x, self.ch_mult[-1], "middle")
        return conv(self.embed_dim, 1, "conv_out")(nn.swish(group_norm("norm_out")(x)))


class Decoder(_Side):
    """Codes at the last level -> image; as many residual blocks as the encoder."""

    @nn.compact
    def __call__(self, z: Float[Array, "B h w E"]) -> Float[Array, "B H W 3"]:
        """Give pixels that belong in [0, 1] but may lie outside."""
        x = conv(self.ch * self.ch_mult[-1], 3, "conv_in")(z)
        x = self._blocks(x, self.ch_mult[-1], "middle")
        for level in reversed(range(len(self.ch_mult))):
            x = self._blocks(x, self.ch_mult[level], f"level_{level}")
            if level > 0:
                x = UpsamplingConv(name=f"level_{level}_upsample")(x)
        return conv(3, 3, "conv_out")(nn.swish(group_norm("norm_out")(x)))


class GoogleVqganModule(nn.Module):
    """All parameters; see `build` for the sizes."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    embed_dim: int
    n_embed: int

    def setup(self) -> None:
        """Build both sides and the codes."""
        sizes = (self.ch, self.ch_mult, self.num_res_blocks)
        self.encoder = Encoder(*sizes, embed_dim=self.embed_dim)
        self.decoder = Decoder(*sizes)
        uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        self.codebook = self.param("codebook", uniform, (self.n_embed, self.embed_dim))

    def latents(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w E"]:
        """Return what is quantised."""
        return self.encoder(x)

    def quantize(self, z: Float[Array, "B h w E"]) -> Int[Array, "B h w"]:
        """Return the nearest code of each latent."""
        return nearest_codes(z, self.codebook)

    def pixels(self, tokens: Int[Array, "B h w"]) -> Float[Array, "B H W 3"]:
        """Return the decoder's image, not clipped; ids past the codebook become its last one."""
        return self.decoder(self.codebook[jnp.clip(tokens, 0, self.n_embed - 1)])

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """There and back; for initialisation, which has to pass every parameter."""
        return self.pixels(self.quantize(self.latents(x)))


def _module(config: Mapping[str, Any]) -> GoogleVqganModule:
    sizes = {k: v for k, v in config.items() if k not in ("name", "image_size")}
    return GoogleVqganModule(**{**sizes, "ch_mult": tuple(sizes["ch_mult"])})


def latents(config: Mapping[str, Any], params: Tree, images: Images) -> Float[Array, "B h w E"]:
    """Return what the encoder gives before quantisation.

    Args:
        config: a complete config of `build`.
        params: the tokenizer's parameters.
        images: [B, H, W, 3] float32 in [0, 1].

    Returns:
        float32 latents.
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
    image_size: int = 256,
    ch: int = 128,
    ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
    num_res_blocks: int = 2,
    embed_dim: int = 256,
    n_embed: int = 1024,
) -> Tokenizer:
    """Return Google's VQGAN, by default the published one; fields are named as in vqgan.py.

    Args:
        image_size: pixels along a side, a multiple of 2^(levels - 1). The parameters do not depend
            on it.
        ch: channels of the first convolution, a multiple of 32.
        ch_mult: the factor of `ch` for each level, finest first.
        num_res_blocks: in a level and in the middle, of the encoder and of the decoder.
        embed_dim: E, the width of a code.
        n_embed: the codebook size.

    Returns:
        The tokenizer; `decode` clips to [0, 1] as the original does before it shows an image.

    Raises:
        InputError: if a size is not a positive integer or does not fit the others.
    """
    config = {
        "name": "google_vqgan",
        "image_size": image_size,
        "ch": ch,
        "ch_mult": list(ch_mult),
        "num_res_blocks": num_res_blocks,
        "embed_dim": embed_dim,
        "n_embed": n_embed,
    }
    check_config(config)
    return as_tokenizer(config, _module(config), lambda x: x)
