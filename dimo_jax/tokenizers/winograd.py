"""A 3x3 convolution with two thirds of the products, for CPUs.

Two rows of a result need four rows of the image and, computed one by one, six products of rows with
rows of the kernel; of sums of those rows four are enough. Equal but for rounding.
Source: Winograd's F(2, 3), in Lavin and Gray, arXiv 1509.09308, equation 5.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MIN_CHANNELS = 64  # of fewer the sums cost what the products save


def _by_rows(x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"]) -> Array:
    """Return the convolution of an image of even height, with one zero around it."""
    batch, height, width, channels = x.shape
    pairs = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    pairs = pairs.reshape(batch, height // 2 + 1, 2, width, channels)
    first, second = pairs[:, :-1, 0], pairs[:, :-1, 1]
    third, fourth = pairs[:, 1:, 0], pairs[:, 1:, 1]
    above, middle, below = kernel

    def along(rows: Array, taps: Array) -> Array:
        return jax.lax.conv_general_dilated(
            rows, taps[None], (1, 1), ((0, 0), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    outer = along(first - third, above)
    plus = along(second + third, (above + middle + below) / 2)
    minus = along(third - second, (above - middle + below) / 2)
    inner = along(second - fourth, below)
    rows = jnp.stack([outer + plus + minus, plus - minus - inner], 2)
    return rows.reshape(batch, height, width, -1)


def conv_general_dilated(x: Array, kernel: Array, *args: Any, **kwargs: Any) -> Array:
    """Convolve as `jax.lax.conv_general_dilated`, on CPUs with fewer products where that is faster.

    Args:
        x: images [B, H, W, C].
        kernel: [3, 3, C, D]; the convolution has stride 1 and one zero of padding.
        *args: what `nn.Conv` hands to the function of this name, strides first.
        **kwargs: likewise.

    Returns:
        [B, H, W, D].
    """

    def direct(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, *args, **kwargs)

    wide = min(kernel.shape[2:]) >= MIN_CHANNELS
    if x.dtype != jnp.float32 or x.shape[1] % 2 or not wide:
        return direct(x, kernel)
    # On GPUs cuDNN chooses such an algorithm itself, and on TPUs products are not what is scarce.
    return jax.lax.platform_dependent(x, kernel, cpu=_by_rows, default=direct)
