"""One encoded picture to the pixels that a feature network sees: 8-bit RGB, cut where requested.

Axes: H height, W width, S pixels along a side of the square.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dimo_jax.common import pictures


class Picture(NamedTuple):
    """A decoded picture.

    Attributes:
        pixels: uint8, RGB.
        kinds: those of pictures.KINDS that its file is of; empty for 8-bit RGB.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    kinds: tuple[str, ...]


def decode(data: bytes, name: str, image_size: int | None = None) -> Picture:
    """Decode a picture from the bytes of its file, as torch-fidelity and clean-fid do.

    Args:
        data: of one of pictures.FORMATS.
        name: of the file, for messages.
        image_size: cut the middle square out and shrink it to that many pixels; None leaves it as
            it is.

    Raises:
        InputError: as pictures.decode.
    """
    image, kinds = pictures.decode(data, name, rgb=True)
    if image_size is not None:
        image = centre_square(image, image_size, name)
    return Picture(np.array(image), kinds)


def cut(pixels: UInt8[np.ndarray, "H W 3"], size: int, name: str) -> UInt8[np.ndarray, "S S 3"]:
    """Do to an array what `centre_square` does to a picture."""
    return np.array(centre_square(Image.fromarray(pixels), size, name))


def centre_square(image: Image.Image, size: int, name: str = "a picture") -> Image.Image:
    """Cut out the middle square, `size` pixels along a side.

    Halved by 2 x 2 means as long as the shorter side stays at least twice as long as wanted, then
    bicubic with antialiasing: how ADM's training images, and with them its statistics, were made.

    Args:
        image: of any size.
        size: of the result.
        name: of the picture, for messages.

    Raises:
        InputError: it is so narrow that it would become too large on the way.

    Source: guided-diffusion's image data sets.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    scaled = (round(image.width * scale), round(image.height * scale))
    pictures.check_pixels(scaled, name)
    image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    return image.crop((left, top, left + size, top + size))
