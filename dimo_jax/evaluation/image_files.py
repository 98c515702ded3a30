"""One encoded picture to pixels, strictly: what is not 8-bit RGB is converted or refused by name.

Axes: H height, W width.
"""

import io
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from dimo_jax.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg")
JPEG_SUFFIXES = (".jpg", ".jpeg")
_GRAY = ("1", "L")
_COLOUR = ("RGB", "P")


class Picture(NamedTuple):
    """A decoded picture.

    Attributes:
        pixels: uint8, RGB.
        gray: whether the file has one channel, which then stands in all three.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    gray: bool


def decode(data: bytes, name: str, image_size: int | None = None) -> Picture:
    """A picture from the bytes of its file.

    Args:
        data: PNG, JPEG or whatever else Pillow reads.
        name: of the file, for messages.
        image_size: cut the middle square out and shrink it to that many pixels; None leaves it as
            it is.

    Returns:
        Its pixels.

    Raises:
        InputError: the file is damaged, or has transparency, 16 bits or a colour space of print.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            mode, transparent = image.mode, "transparency" in image.info
            if transparent or mode not in (*_GRAY, *_COLOUR):
                found = "transparency" if transparent or mode in ("RGBA", "LA", "PA") else mode
                raise InputError(f"{name} has {found}, expected 8-bit RGB; convert it")
            rgb = image.convert("RGB")
            if image_size is not None:
                rgb = centre_square(rgb, image_size)
            return Picture(np.array(rgb), mode in _GRAY)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{name} ({len(data)} bytes) is no readable picture") from error
    except Exception as error:  # Pillow raises whatever its decoders stumble over
        raise InputError(
            f"{name} ({len(data)} bytes) is no readable picture ({error}); write it again"
        ) from error


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The middle square, `size` pixels along a side.

    Halved by 2 x 2 means as long as the shorter side stays at least twice as long as wanted, then
    bicubic with antialiasing: how ADM's training images, and with them its statistics, were made.

    Source: guided-diffusion's image data sets.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    scaled = (round(image.width * scale), round(image.height * scale))
    image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    return image.crop((left, top, left + size, top + size))
