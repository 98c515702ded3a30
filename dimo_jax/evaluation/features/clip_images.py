"""How images come to CLIP's image tower; each score has its own way, which is part of the score.

All on the host, with Pillow. Axes: H height, W width, S pixels along a side of the tower's input.
"""

import io

import numpy as np
from jaxtyping import Float
from PIL import Image

from dimo_jax.common import pictures
from dimo_jax.common.errors import InputError
from dimo_jax.models.clip import MEAN, STD

_JPEG_QUALITY = 75  # Pillow's own, which HPS v2's benchmark images are written with
_JPEG_MODES = ("1", "L", "RGB", "CMYK", "YCbCr")
_BICUBIC = Image.Resampling.BICUBIC


def has_alpha(image: Image.Image) -> bool:
    """Return whether an image has a channel beside its colours."""
    return image.mode in ("RGBA", "LA", "PA")


def as_jpeg(image: Image.Image) -> Image.Image:
    """Return the image as it comes back from a JPEG file, a step of HPS v2's protocol."""
    buffer = io.BytesIO()
    image = image if image.mode in _JPEG_MODES else image.convert("RGB")
    image.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return pictures.decode(buffer.getvalue(), "an image").image


def squared(image: Image.Image, size: int = 256) -> Image.Image:
    """Return the middle square, resized by Lanczos.

    What the CLIP score's code does to images first.

    Args:
        image: of any size.
        size: pixels along a side.

    Source: the evaluation of GigaGAN, arXiv 2303.05511, as Di[M]O's authors use it.
    """
    side = min(image.size)
    return _middle(image, side).resize((size, size), Image.Resampling.LANCZOS)


def clip_pixels(image: Image.Image, size: int) -> Float[np.ndarray, "S S 3"]:
    """CLIP's preprocessing: the shorter side to `size`, bicubic, the middle, then normalised.

    Args:
        image: of any size and mode.
        size: pixels along a side of the tower's input.

    Returns:
        float32 [size, size, 3].
    """
    if min(image.size) != size:
        image = image.resize(_shorter_side(image.size, size), _BICUBIC)
    pixels = _middle(image, size).convert("RGB")
    return normalised(np.asarray(pixels, np.float32) / np.float32(255))


def hps_pixels(image: Image.Image, size: int, antialias: bool = True) -> Float[np.ndarray, "S S 3"]:
    """HPS v2's preprocessing: as CLIP's, but on float pixels, which leave [0, 1] unclipped.

    Args:
        image: of any size; gray and palette become RGB.
        size: pixels along a side of the tower's input.
        antialias: as torchvision resizes tensors from 0.17 on. False is what older ones did, and
            gives other scores: about 8 of 255 gray levels on an image of 1024 pixels.

    Returns:
        float32 [size, size, 3].

    Raises:
        InputError: the image has an alpha channel, for which the score is not defined.
    """
    if has_alpha(image):
        raise InputError(f"an image of the mode {image.mode} has no HPS; save it as RGB")
    pixels = np.asarray(image.convert("RGB"), np.float32) / np.float32(255)
    width, height = image.size
    if min(width, height) != size:
        width, height = _shorter_side(image.size, size)
        pixels = resized(pixels, height, width, antialias)
    top, left = _offset(height, size), _offset(width, size)
    return normalised(pixels[top : top + size, left : left + size])


def resized(
    pixels: Float[np.ndarray, "H W 3"], height: int, width: int, antialias: bool
) -> Float[np.ndarray, "H2 W2 3"]:
    """Resize float pixels by bicubic, as torch.nn.functional.interpolate does it, without rounding.

    Args:
        pixels: on any scale.
        height: of the result.
        width: of the result.
        antialias: with it the cubic has a = -0.5 and is stretched over what it shrinks, as in
            Pillow; without it a = -0.75 and four taps.
    """
    if antialias:
        # Pillow keeps floats in images of one channel only.
        channels = [Image.fromarray(np.ascontiguousarray(pixels[..., c])) for c in range(3)]
        return np.stack([np.asarray(c.resize((width, height), _BICUBIC)) for c in channels], -1)
    rows, columns = _taps(pixels.shape[0], height), _taps(pixels.shape[1], width)
    return np.einsum("ij,jkc,lk->ilc", rows, pixels, columns, optimize=True).astype(np.float32)


def _taps(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Return the matrix of a cubic interpolation, a = -0.75, between the centres of four pixels."""
    place = (np.arange(new) + 0.5) * old / new - 0.5
    first, a = np.floor(place).astype(int), -0.75
    matrix = np.zeros((new, old))
    for step in range(-1, 3):
        x = np.abs(place - first - step)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((x - 5) * x + 8) * x * a - 4 * a
        weight = np.where(x <= 1, near, far)
        # At the border the outermost pixel is repeated, so taps may fall together.
        np.add.at(matrix, (np.arange(new), np.clip(first + step, 0, old - 1)), weight)
    return matrix


def normalised(pixels: Float[np.ndarray, "S S 3"]) -> Float[np.ndarray, "S S 3"]:
    """(pixels - MEAN) / STD in float32, of pixels in 0..1."""
    return (pixels - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)


def _shorter_side(size: tuple[int, int], wanted: int) -> tuple[int, int]:
    """(width, height) with the shorter of them `wanted` and the longer cut to a whole number."""
    width, height = size
    longer = int(wanted * max(size) / min(size))
    pictures.check_pixels((wanted, longer), "an image")
    return (wanted, longer) if width <= height else (longer, wanted)


def _middle(image: Image.Image, side: int) -> Image.Image:
    left, top = (_offset(length, side) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _offset(length: int, side: int) -> int:
    return round((length - side) / 2)
