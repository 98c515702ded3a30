"""What every convolutional tokenizer is made of: layers, quantisation, the tokenizer around them.

The VQGAN lineage shares them: taming-transformers `modules/diffusionmodules/model.py`, LlamaGen,
and, with another shortcut and without some biases, Google's MaskGIT. B batch, H height, W width,
C channels, L tokens, K codes, E the width of a code.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float, Int, Key

from dimo_jax.common.errors import InputError
from dimo_jax.common.trees import Tree
from dimo_jax.tokenizers import winograd
from dimo_jax.tokenizers.tokenizer import Images, Tokenizer, Tokens, check_shape, check_sizes

GROUPS = 32


def group_norm(name: str) -> nn.GroupNorm:
    """Return GroupNorm of 32 groups, epsilon 1e-6, variance of centred values as in PyTorch."""
    # Flax's fast variance E[x^2] - E[x]^2 cancels where a group's mean is far from zero.
    return nn.GroupNorm(num_groups=GROUPS, epsilon=1e-6, use_fast_variance=False, name=name)


def conv(features: int, size: int, name: str, use_bias: bool = True) -> nn.Conv:
    """Return a convolution that keeps height and width.

    An odd `size` by `size` kernel, zero padding.
    """
    cheaper = winograd.conv_general_dilated if size == 3 else None
    return nn.Conv(
        features,
        (size, size),
        padding=size // 2,
        use_bias=use_bias,
        conv_general_dilated=cheaper,
        name=name,
    )


def downsampling_conv(features: int, name: str) -> nn.Conv:
    """Return a 3x3 convolution of stride 2 that pads one zero at the right and at the bottom only.

    Its windows are centred on the odd pixels; a padding of 1 would centre them on the even ones.
    """
    return nn.Conv(features, (3, 3), strides=2, padding=((0, 1), (0, 1)), name=name)


class UpsamplingConv(nn.Module):
    """Twice the height and width, each pixel repeated, then a 3x3 convolution with zero padding.

    A window sees 2x2 different pixels at most. So its taps on the same pixel are added, and the
    image is convolved before it grows: 4/9 of the products, equal but for rounding. Parameters are
    those of the 3x3 convolution.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
        """Return the image of twice the size."""
        batch, height, width, channels = x.shape
        shape = (3, 3, channels, channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        x, kernel, bias = promote_dtype(x, kernel, bias)

        def of_parities(taps: Float[Array, "3 ..."]) -> Float[Array, "2 2 ..."]:
            first, second, third = taps
            even, odd = (first, second + third), (first + second, third)
            return jnp.stack([jnp.stack(even), jnp.stack(odd)])

        # [row's parity, column's parity, 2, 2, C, D]; one convolution gives all four.
        kernels = jnp.moveaxis(jax.vmap(jax.vmap(of_parities))(of_parities(kernel)), 2, 1)
        merged = jnp.moveaxis(kernels, (0, 1), (3, 4)).reshape(2, 2, channels, -1)
        found = jax.lax.conv_general_dilated(
            x, merged, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).reshape(batch, height + 1, width + 1, 2, 2, channels)
        # Even rows begin with the window that hangs over the edge, odd ones a window later.
        rows = jnp.stack([found[:, p : p + height, :, p] for p in (0, 1)], 2)
        both = jnp.stack([rows[:, :, :, p : p + width, p] for p in (0, 1)], 4)
        grown = both.reshape(batch, 2 * height, 2 * width, channels)
        return grown + bias[None, None, None]


class ResidualBlock(nn.Module):
    """Twice norm, swish, 3x3 convolution; then the sum with the input.

    Attributes:
        features: channels of the result.
        use_bias: whether the convolutions have one.
        shortcut: what the 1x1 convolution takes where the number of channels changes: "input" as
            in PyTorch's VQGANs, or "output", which is Google MaskGIT's h + conv(h), where the input
            does not reach the result at all.
    """

    features: int
    use_bias: bool = True
    shortcut: Literal["input", "output"] = "input"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        """Return the block's result, D = features channels."""
        h = conv(self.features, 3, "conv1", self.use_bias)(nn.swish(group_norm("norm1")(x)))
        h = conv(self.features, 3, "conv2", self.use_bias)(nn.swish(group_norm("norm2")(h)))
        if x.shape[-1] == self.features:
            return x + h
        source = x if self.shortcut == "input" else h
        return h + conv(self.features, 1, "shortcut_conv", self.use_bias)(source)


class AttentionBlock(nn.Module):
    """Attention of one head, as wide as the image has channels, over all pixels; residual."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Return the input plus what each pixel attends to."""
        batch, height, width, channels = x.shape
        normed = group_norm("norm")(x)
        query, key, value = (
            conv(channels, 1, name)(normed).reshape(batch, height * width, channels)
            for name in ("query", "key", "value")
        )
        weights = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", query, key) * channels**-0.5, axis=-1)
        attended = jnp.einsum("bqk,bkc->bqc", weights, value)
        return x + conv(channels, 1, "out")(attended.reshape(x.shape))


def l2_normalized(x: Float[Array, "*N E"]) -> Float[Array, "*N E"]:
    """Scale vectors to length 1 (was of length 1.

    Those shorter than 1e-12 are divided by 1e-12, as by torch's normalize.

    Args:
        x: vectors along the last axis.
    """
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def nearest_codes(z: Float[Array, "B H W E"], codebook: Float[Array, "K E"]) -> Int[Array, "B H W"]:
    """Return the code at the least distance from each latent; of several the lowest index.

    Args:
        z: latents.
        codebook: the codes.

    Returns:
        Indices 0 .. K - 1, int32.
    """
    # |z|^2 + |e|^2 - 2 z.e, not the sum of squared differences, which needs B H W K E values.
    # HIGHEST: TF32 and bfloat16 products exchange codes that lie close to each other.
    products = jnp.einsum("bhwe,ke->bhwk", z, codebook, precision=jax.lax.Precision.HIGHEST)
    z_squares = jnp.sum(z**2, axis=-1, keepdims=True)
    code_squares = jnp.sum(codebook**2, axis=-1)[None, None, None]
    return jnp.argmin(z_squares + code_squares - 2 * products, axis=-1).astype(jnp.int32)


def check_config(config: Mapping[str, Any]) -> None:
    """Raise InputError if a convolutional tokenizer cannot have these sizes.

    Args:
        config: name, ch_mult, image_size, ch, and any other sizes.
    """
    name, factors = config["name"], config["ch_mult"]
    sizes = {k: v for k, v in config.items() if k not in ("name", "ch_mult")}
    check_sizes(name, **sizes, **{f"ch_mult[{i}]": factor for i, factor in enumerate(factors)})
    multiple = 2 ** max(len(factors) - 1, 0)
    for field, holds, expected in (
        ("ch_mult", len(factors) > 0, "a factor for each level"),
        ("ch", config["ch"] % GROUPS == 0, f"a multiple of {GROUPS}, the groups of its norms"),
        ("image_size", config["image_size"] % multiple == 0, f"a multiple of {multiple}"),
    ):
        if not holds:
            raise InputError(
                f"{field} of the tokenizer {name!r} is {config[field]}, expected {expected}"
            )


def as_tokenizer(
    config: Mapping[str, Any], module: nn.Module, to_unit: Callable[[Array], Array]
) -> Tokenizer:
    """Return the tokenizer around a network that halves the image's sides between its levels.

    Args:
        config: that rebuilds it; image_size, ch_mult and n_embed are looked at.
        module: with the methods latents (images in [0, 1] -> [B, h, w, E]), quantize (latents ->
            ids [B, h, w]) and pixels (ids [B, h, w] -> images), and a call that passes all of them.
        to_unit: what `pixels` gives -> [0, 1], but for the clipping.

    Returns:
        The tokenizer.
    """
    size = config["image_size"]
    factor = 2 ** (len(config["ch_mult"]) - 1)
    side = size // factor

    def init(key: Key[Array, ""]) -> Tree:
        # No parameter's shape depends on the image's size: the smallest will do.
        return module.init(key, jnp.zeros((1, factor, factor, 3), jnp.float32))["params"]

    @jax.jit
    def encode(params: Tree, images: Images) -> Int[Array, "B L"]:
        check_shape("images", images.shape, (size, size, 3))
        bound = module.bind({"params": params})
        tokens = bound.quantize(bound.latents(jnp.asarray(images)))
        return tokens.reshape(-1, side**2)

    @jax.jit
    def decode(params: Tree, tokens: Tokens) -> Float[Array, "B H W C"]:
        check_shape("tokens", tokens.shape, (side**2,))
        grid = jnp.asarray(tokens).reshape(-1, side, side)
        pixels = module.bind({"params": params}).pixels(grid)
        return jnp.clip(to_unit(pixels), 0.0, 1.0)

    return Tokenizer(
        config=dict(config),
        grid=(side, side),
        codebook_size=config["n_embed"],
        image_shape=(size, size, 3),
        init=init,
        encode=encode,
        decode=decode,
    )
