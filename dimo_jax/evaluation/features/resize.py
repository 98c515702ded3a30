"""How images come to the 299 pixels of the feature network; the resizer is part of a metric.

Axes: N or B images, H height, W width. Pixels are 0..255.
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, UInt8
from PIL import Image

from dimo_jax.models.inception import IMAGE_SIZE

_THREADS = 8  # Pillow lets go of the interpreter's lock while it resizes


def tf1_bilinear(
    images: Num[Array, "B H W C"] | Num[np.ndarray, "B H W C"], size: int = IMAGE_SIZE
) -> Float[Array, "B {size} {size} C"]:
    """Bilinear as TensorFlow 1 does it by default: the resize inside the FID's Inception graph.

    Pixel i of the result lies at i * (old size / new size), without the half pixel of every other
    library and without antialiasing: large images keep every third or fourth pixel. An image of the
    wanted size comes back unchanged.

    Args:
        images: any dtype; uint8 need not be converted first.
        size: pixels along both sides of the result.

    Returns:
        float32, on the scale of the input.

    Source: tensorflow/core/kernels/image/resize_bilinear_op.cc with align_corners and
    half_pixel_centers off.
    """
    x = jnp.asarray(images).astype(jnp.float32)
    left, right, share = _neighbours(x.shape[2], size)
    share = share[None, None, :, None]
    x = x[:, :, left] + (x[:, :, right] - x[:, :, left]) * share
    upper, lower, share = _neighbours(x.shape[1], size)
    share = share[None, :, None, None]
    return x[:, upper] + (x[:, lower] - x[:, upper]) * share


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new pixel: the old ones before and behind it, and the share of the latter."""
    # All in float32, as there: in float64 some positions would fall on the other side of a pixel.
    position = np.arange(new, dtype=np.float32) * np.float32(old / new)
    before = position.astype(np.int32)
    return before, np.minimum(before + 1, old - 1), position - before.astype(np.float32)


def clean_bicubic(
    images: UInt8[np.ndarray, "N H W 3"], size: int = IMAGE_SIZE, quantized: bool = False
) -> Float[np.ndarray, "N {size} {size} 3"]:
    """Bicubic with antialiasing, by Pillow on the host: clean-fid's mode "clean".

    Args:
        images: RGB.
        size: pixels along both sides of the result.
        quantized: round to whole pixel values, which clean-fid does not; the protocols that resize
            an ordinary Pillow image do.

    Returns:
        float32, clipped to 0..255.

    Source: Parmar et al., arXiv 2104.11222.
    """
    resize = functools.partial(_quantized if quantized else _unquantized, size=size)
    with ThreadPoolExecutor(_THREADS) as pool:
        return np.stack(list(pool.map(resize, images)))


def _quantized(image: UInt8[np.ndarray, "H W 3"], size: int) -> Float[np.ndarray, "H2 W2 3"]:
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.float32)


def _unquantized(image: UInt8[np.ndarray, "H W 3"], size: int) -> Float[np.ndarray, "H2 W2 3"]:
    # Pillow keeps floats in images of one channel only.
    channels = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(c.resize((size, size), Image.Resampling.BICUBIC)) for c in channels]
    return np.stack(resized, axis=-1).clip(0, 255)


def opencv_bilinear(
    image: UInt8[np.ndarray, "H W 3"], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Bilinear without antialiasing in integers, on the host: what detectors of mmdet 2.x get.

    Args:
        image: RGB.
        height: of the result.
        width: of the result.

    Returns:
        The pixels of OpenCV's INTER_LINEAR, to the bit.

    Source: OpenCV's imgproc/resize, 8-bit: weights of 11 bits, four of them dropped between.
    """
    left, share = _opencv_places(image.shape[1], width)
    # Outside the middles of the outermost pixels columns have no share of another; rows keep it.
    share = np.where((left < 0) | (left >= image.shape[1] - 1), 0, share)
    left = left.clip(0, image.shape[1] - 1)
    right = np.minimum(left + 1, image.shape[1] - 1)
    behind, before = (_opencv_weights(x)[None, :, None] for x in (share, 1 - share))
    rows = image[:, left] * before + image[:, right] * behind
    upper, share = _opencv_places(image.shape[0], height)
    above, below = (rows[x.clip(0, image.shape[0] - 1)] >> 4 for x in (upper, upper + 1))
    behind, before = (_opencv_weights(x)[:, None, None] for x in (share, 1 - share))
    return (((above * before >> 16) + (below * behind >> 16) + 2) >> 2).astype(np.uint8)


def _opencv_places(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """For each new pixel: the old one before it, which may be -1, and the share of the next."""
    # The position in float64, the share in float32, as there.
    position = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    before = np.floor(position)
    return before.astype(np.int64), position - before


def _opencv_weights(share: np.ndarray) -> np.ndarray:
    return np.rint(share * np.float32(2048)).astype(np.int32)
