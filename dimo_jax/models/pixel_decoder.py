"""The pixel decoder of Mask2Former: deformable attention over three maps, and the map of masks.

Axes: B batch, H height, W width, C channels, N positions of the three maps together, Q queries, A
heads, d = D / A, P points of a head in a map, D width.

Source: Zhu et al., arXiv 2010.04159; Cheng et al., arXiv 2112.01527.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dimo_jax.models.swin import conv, dense, norm

LEVELS = 3  # maps of strides 32, 16 and 8, in this order
POINTS = 4
GROUPS = 32  # of the group norms
_TEMPERATURE = 10_000
_BORDER = (1, 2)  # positions of zeros before and behind a map

Size = tuple[int, int]


class PixelDecoder(nn.Module):
    """Four maps of a backbone become three of one width, and a fourth that masks are made of.

    Attributes:
        width: D.
        heads: A.
        depth: layers of deformable attention.
        mlp_dim: width inside the feed-forward.
    """

    width: int
    heads: int
    depth: int
    mlp_dim: int

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[Array, "B _ _ _"]]
    ) -> tuple[list[Float[Array, "B _ _ D"]], Float[Array, "B H W D"]]:
        """Return the maps of strides 32, 16 and 8, and the one of stride 4.

        Args:
            maps: of strides 4, 8, 16 and 32.
        """
        coarse = list(maps[::-1][:LEVELS])
        inputs = [
            _group_norm(conv(self.width, (1, 1), name=f"input_{i}")(x), f"input_norm_{i}")
            for i, x in enumerate(coarse)
        ]
        sizes = [(x.shape[1], x.shape[2]) for x in inputs]
        level = self.param("level_encoding", nn.initializers.normal(1.0), (LEVELS, self.width))
        places = [
            jnp.asarray(sine_positions(size, self.width)).reshape(1, -1, self.width)
            + level[None, i : i + 1]
            for i, size in enumerate(sizes)
        ]
        x = jnp.concatenate([_rows(x) for x in inputs], axis=1)
        place = jnp.concatenate(places, axis=1)
        for i in range(self.depth):
            x = _Layer(self.heads, self.mlp_dim, name=f"layer_{i}")(x, place, sizes)
        ends = np.cumsum([height * width for height, width in sizes])[:-1]
        parts = jnp.split(x, ends, axis=1)
        found = [x.reshape(len(x), *size, -1) for x, size in zip(parts, sizes, strict=True)]
        y = conv(self.width, (1, 1), use_bias=False, name="lateral")(maps[0])
        y = _group_norm(y, "lateral_norm") + resized(found[-1], (y.shape[1], y.shape[2]))
        y = conv(self.width, (3, 3), use_bias=False, name="output")(y)
        y = nn.relu(_group_norm(y, "output_norm"))
        return found, conv(self.width, (1, 1), name="mask_feature")(y)


class _Layer(nn.Module):
    """Deformable attention of all positions with each other, and feed-forward; norms follow."""

    heads: int
    mlp_dim: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], place: Float[Array, "1 N D"], sizes: Sequence[Size]
    ) -> Float[Array, "B N D"]:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, LEVELS, POINTS)
        query = x + place
        offsets = dense(2 * math.prod(shape[2:]), name="sampling_offsets")(query)
        weights = dense(math.prod(shape[2:]), name="attention_weights")(query)
        weights = jax.nn.softmax(weights.reshape(*shape[:3], -1)).reshape(shape)
        value = dense(width, name="value")(x).reshape(*shape[:3], -1)
        y = deformable(value, sizes, offsets.reshape(*shape, 2), weights)
        y = dense(width, name="out")(y.reshape(x.shape))
        x = norm(name="attention_norm")(x + y)
        y = dense(width, name="mlp_out")(nn.relu(dense(self.mlp_dim, name="mlp_in")(x)))
        return norm(name="mlp_norm")(x + y)


def deformable(
    value: Float[Array, "B N A d"],
    sizes: Sequence[Size],
    offsets: Float[Array, "B N A L P 2"],
    weights: Float[Array, "B N A L P"],
) -> Float[Array, "B N A d"]:
    """Attend from each position to a few points of every map, around the same place there.

    Args:
        value: of the maps' positions, one map behind the other.
        sizes: (height, width) of the maps.
        offsets: of the points, (x, y) in pixels of the map where they lie.
        weights: of the points; their sum is 1 over L and P.

    Returns:
        The weighted sums of the values, bilinear between positions and 0 outside the maps.

    Source: Zhu et al., arXiv 2010.04159, equation 3.
    """
    batch, length, heads, channels = value.shape
    ends = np.cumsum([height * width for height, width in sizes])[:-1]
    # All maps in one table, each with a border of zeros, so that no point needs a case of its own.
    # Heads first: what is read at a time then lies together.
    table = jnp.concatenate(
        [
            jnp.pad(
                part.reshape(batch, *size, heads, channels),
                [(0, 0), _BORDER, _BORDER, *[(0, 0)] * 2],
            )
            .transpose(0, 3, 1, 2, 4)
            .reshape(batch, heads, -1, channels)
            for part, size in zip(jnp.split(value, ends, axis=1), sizes, strict=True)
        ],
        axis=2,
    )
    index, shares = _corners(sizes, offsets)
    index = index.transpose(3, 4, 5, 0, 2, 1).reshape(-1, batch, heads, length)
    weights = (shares * weights[..., None]).transpose(3, 4, 5, 0, 2, 1).reshape(index.shape)
    gather = jax.vmap(jax.vmap(lambda rows, index: rows[index]))

    def add(total: Array, term: tuple[Array, Array]) -> tuple[Array, None]:
        return total + gather(table, term[0]) * term[1][..., None], None

    # A corner at a time: all at once take 17 times as long on a CPU (jax 0.10.2), and 0.6 GB more.
    start = jnp.zeros((batch, heads, length, channels), value.dtype)
    return jax.lax.scan(add, start, (index, weights))[0].transpose(0, 2, 1, 3)


def _corners(
    sizes: Sequence[Size], offsets: Float[Array, "B N A L P 2"]
) -> tuple[Int[Array, "B N A L P 4"], Float[Array, "B N A L P 4"]]:
    """Return the rows of the table that surround each point, and their shares of it."""
    size = np.array([(width, height) for height, width in sizes], np.float32)
    padded = size.astype(np.int32) + sum(_BORDER)
    starts = np.cumsum([0, *padded.prod(axis=1)[:-1]])
    centres = np.concatenate([_centres(size) for size in sizes])
    # Half a pixel less to the corner of a pixel, one more for the border.
    place = jnp.asarray(centres[:, None] * size[None] + (_BORDER[0] - 0.5))
    place = place[None, :, None, :, None] + offsets
    # Beyond the border all is 0: points there may come nearer.
    place = jnp.clip(place, 0, jnp.asarray(size + 1)[None, None, None, :, None])
    corner = jnp.floor(place)
    right, down = ((place - corner)[..., i] for i in (0, 1))
    column, row = (corner[..., i].astype(jnp.int32) for i in (0, 1))
    start, stride = (
        jnp.asarray(x, jnp.int32)[None, None, None, :, None] for x in (starts, padded[:, 0])
    )
    index = start + row * stride + column
    left, up = 1 - right, 1 - down
    return (
        jnp.stack([index, index + 1, index + stride, index + stride + 1], -1),
        jnp.stack([up * left, up * right, down * left, down * right], -1),
    )


def _centres(size: Size) -> Float[np.ndarray, "N 2"]:
    """(x, y) of each position's middle, as shares of width and height."""
    height, width = size
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    return np.stack([x / width, y / height], -1).reshape(-1, 2).astype(np.float32)


def sine_positions(size: Size, width: int) -> Float[np.ndarray, "H W D"]:
    """Return the encoding of a map's positions: sines and cosines of y, then of x.

    Args:
        size: (height, width) of the map.
        width: D, a multiple of 4.

    Source: Carion et al., arXiv 2005.12872, with positions from 1, as shares of 2 pi.
    """
    half = width // 2
    powers = np.float32(_TEMPERATURE) ** (2 * (np.arange(half) // 2) / np.float32(half))
    parts = []
    for length in size:
        place = np.arange(1, length + 1, dtype=np.float32)
        place = place / (place[-1] + np.float32(1e-6)) * np.float32(2 * math.pi)
        angle = place[:, None] / powers.astype(np.float32)[None]
        waves = np.stack([np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])], -1)
        parts.append(waves.reshape(length, half))
    y, x = parts
    shape = (*size, half)
    both = (np.broadcast_to(y[:, None], shape), np.broadcast_to(x[None], shape))
    return np.concatenate(both, -1)


def resized(x: Float[Array, "B H W C"], size: Size) -> Float[Array, "B H2 W2 C"]:
    """Resize bilinearly between the positions' middles, without antialiasing."""
    shape = (len(x), *size, x.shape[-1])
    return jax.image.resize(x, shape, "linear", antialias=False)


def _group_norm(x: Float[Array, "B H W C"], name: str) -> Float[Array, "B H W C"]:
    # Flax's fast variance E[x^2] - E[x]^2 breaks parity with PyTorch.
    return nn.GroupNorm(GROUPS, epsilon=1e-5, use_fast_variance=False, name=name)(x)


def _rows(x: Float[Array, "B H W C"]) -> Float[Array, "B N C"]:
    return x.reshape(len(x), -1, x.shape[-1])
