"""Numbers and places as cosines and sines: how time and the grid come into a transformer.

Axes: B batch, K values, N positions, H heads, d numbers of a head, R = d / 2 angles.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

WAVES = 256  # numbers for each value


def sinusoids(values: Float[Array, "B K"]) -> Float[Array, "B C"]:
    """Return cosines, then sines of each value times 128 frequencies from 1 down to 1/10000.

    Args:
        values: [B, K] float32; a timestep reaches 63,000, where float32 leaves an angle 1e-3.

    Returns:
        [B, K * 256] float32.

    Source: diffusers' get_timestep_embedding with flip_sin_to_cos and without a shift.
    """
    half = WAVES // 2
    # Each rounding is PyTorch's: a frequency's last bit moves an angle by 4e-3.
    exponents = np.float32(-math.log(10_000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = values.astype(jnp.float32)[..., None] * frequencies[None, None]
    waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return waves.reshape(len(values), -1)


def rotary(
    text_length: int, side: int, dims: Sequence[int]
) -> tuple[Float[np.ndarray, "N R"], Float[np.ndarray, "N R"]]:
    """Return cosines and sines of the rotary angles.

    Text at (0, 0, 0), image tokens at (0, row, column).

    Args:
        text_length: T.
        side: of the grid inside the blocks.
        dims: numbers of a head that belong to each of the three axes.

    Returns:
        Two float32 arrays [T + side^2, d / 2], rounded from float64.

    Source: Su et al., arXiv 2104.09864, for several axes as in Flux.
    """
    places = np.zeros((text_length + side**2, 3))
    places[text_length:, 1:] = np.stack(np.divmod(np.arange(side**2), side), axis=1)
    angles = np.concatenate(
        [places[:, i : i + 1] * 10_000.0 ** (-np.arange(0, d, 2) / d) for i, d in enumerate(dims)],
        axis=1,
    )
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotated(
    x: Float[Array, "B N H d"], angles: tuple[Float[np.ndarray, "N R"], Float[np.ndarray, "N R"]]
) -> Float[Array, "B N H d"]:
    """Neighbouring numbers 2 r and 2 r + 1 of every head as one point, turned by angle r."""
    cos, sin = (a[None, :, None] for a in angles)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
