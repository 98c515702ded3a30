"""Swin: a transformer whose attention stays inside windows, shifted by half of one in every second.

Axes: B batch, H height, W width, C channels, S positions of a window, M windows of an image.

Source: Liu et al., arXiv 2103.14030, with the parameters' order of OpenMMLab's detectors.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dimo_jax.models.layers import LayerNorm

PATCH = 4  # pixels along a side
STAGES = 4
MLP_RATIO = 4
_APART = -100.0  # added to the score of two positions that only the shift has put together

norm = functools.partial(LayerNorm, epsilon=1e-5)
# Uniform: the default, a truncated normal, takes long to compile for each new shape.
dense = functools.partial(nn.Dense, kernel_init=nn.initializers.lecun_uniform())
conv = functools.partial(nn.Conv, kernel_init=nn.initializers.lecun_uniform())


class Swin(nn.Module):
    """The backbone of a detector: four maps, each of half the size of the one before.

    Attributes:
        width: channels of the first map; each stage doubles them.
        depth: blocks of each stage.
        heads: of each stage.
        window: positions along a side of a window.
    """

    width: int
    depth: tuple[int, ...]
    heads: tuple[int, ...]
    window: int

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> list[Float[Array, "B _ _ _"]]:
        """Return the maps of strides 4, 8, 16 and 32, each with a norm of its own.

        Args:
            images: normalised; height and width are multiples of 32.
        """
        x = conv(self.width, (PATCH, PATCH), PATCH, "VALID", name="patch")(images)
        x, maps = norm(name="patch_norm")(x), []
        for stage, (depth, heads) in enumerate(zip(self.depth, self.heads, strict=True)):
            if stage:
                x = _Merge(name=f"merge_{stage - 1}")(x)
            for i in range(depth):
                shift = (i % 2) * (self.window // 2)
                x = _Block(heads, self.window, shift, name=f"stage_{stage}_block_{i}")(x)
            maps.append(norm(name=f"norm_{stage}")(x))
        return maps


class _Merge(nn.Module):
    """Halve height and width, double the channels."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        # Row and column of a position inside its four behind its channel: OpenMMLab's order.
        x = x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // 2, width // 2, 4 * channels)
        return dense(2 * channels, use_bias=False, name="reduction")(norm(name="norm")(x))


class _Block(nn.Module):
    """Pre-norm attention in windows and feed-forward, both residual."""

    heads: int
    window: int
    shift: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        height, width, channels = x.shape[1:]
        # Zeros after the norm: they are attended to, as in the original.
        y = norm(name="attention_norm")(x)
        bottom, right = (-size % self.window for size in (height, width))
        y = jnp.pad(y, ((0, 0), (0, bottom), (0, right), (0, 0)))
        size = (y.shape[1], y.shape[2])
        y = jnp.roll(y, (-self.shift, -self.shift), (1, 2))
        apart = None
        if self.shift:
            apart = jnp.asarray(shift_mask(size, self.window, self.shift))
        y = _Attention(self.heads, self.window, name="attention")(windows(y, self.window), apart)
        y = jnp.roll(joined(y, self.window, size), (self.shift, self.shift), (1, 2))
        x = x + y[:, :height, :width]
        y = dense(MLP_RATIO * channels, name="mlp_in")(norm(name="mlp_norm")(x))
        return x + dense(channels, name="mlp_out")(jax.nn.gelu(y, approximate=False))


class _Attention(nn.Module):
    """Attention of a window's positions, with a learned bias for each offset."""

    heads: int
    window: int

    @nn.compact
    def __call__(self, x: Float[Array, "B M S C"], apart: Array | None) -> Float[Array, "B M S C"]:
        channels = x.shape[-1]
        rows = (2 * self.window - 1) ** 2
        table = self.param("bias_table", nn.initializers.normal(0.02), (rows, self.heads))
        bias = table[jnp.asarray(offset_index(self.window))].transpose(2, 0, 1)[None, None]
        parts = jnp.split(dense(3 * channels, name="qkv")(x), 3, axis=-1)
        # Heads before positions: see models.attention.
        query, key, value = (
            part.reshape(*x.shape[:3], self.heads, -1).swapaxes(2, 3) for part in parts
        )
        query = query / math.sqrt(channels // self.heads)
        scores = jnp.einsum("bmhqd,bmhkd->bmhqk", query, key) + bias
        if apart is not None:
            scores = scores + apart[None, :, None]
        y = jnp.einsum("bmhqk,bmhkd->bmhqd", jax.nn.softmax(scores), value)
        return dense(channels, name="out")(y.swapaxes(2, 3).reshape(x.shape))


def windows(x: Any, side: int) -> Any:
    """Cut a map [B, H, W, C] into windows [B, M, S, C], row by row.

    Args:
        x: of JAX or NumPy; `side` divides its height and width.
        side: positions along a side of a window.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, side * side, channels)


def joined(x: Float[Array, "B M S C"], side: int, size: tuple[int, int]) -> Float[Array, "B H W C"]:
    """Undo `windows` of a map of (height, width)."""
    rows, columns = (length // side for length in size)
    x = x.reshape(len(x), rows, columns, side, side, x.shape[-1])
    return x.swapaxes(2, 3).reshape(len(x), *size, x.shape[-1])


def offset_index(side: int) -> Int[np.ndarray, "S S"]:
    """Return the row of the bias table for each pair (query, key) of a window's positions."""
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1)
    places = places.reshape(-1, 2)
    offsets = places[:, None] - places[None] + side - 1
    return offsets[..., 0] * (2 * side - 1) + offsets[..., 1]


def shift_mask(size: tuple[int, int], side: int, shift: int) -> Float[np.ndarray, "M S S"]:
    """Return what is added to the scores of a shifted map: 0, or _APART across its seams."""
    # 0, 1 or 2 along each axis: what lay in front of the last window, in it, and came round.
    rows, columns = (
        (np.arange(length) >= length - side) + (np.arange(length) >= length - shift).astype(int)
        for length in size
    )
    regions = (3 * rows[:, None] + columns[None])[None, :, :, None]
    inside = windows(regions, side)[0, :, :, 0]
    return np.where(inside[:, :, None] == inside[:, None], 0.0, _APART).astype(np.float32)
