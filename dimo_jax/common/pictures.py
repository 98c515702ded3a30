"""The one place that opens pictures: known formats, a limit on pixels, the first frame.

Pillow's own `Image.open` tries every format it knows: a file that begins with %!PS goes to
Ghostscript, a program, whatever its name. Files come from strangers.
"""

import io
import logging
import os
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile

from dimo_jax.common import readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown

# What Pillow decodes by itself, in its own process.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# PPM is the family of the last two; pytorch-fid and clean-fid read the same ones but GIF.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
JPEG_SUFFIXES = (".jpg", ".jpeg")
# 8192 x 8192, a quarter of a gigabyte decoded. The largest picture of ImageNet has 61 million.
MAX_PIXELS = 1 << 26
# MAX_PIXELS of 16 bits and four channels. Of what a PNG carries beside its pixels Pillow unpacks no
# more than 64 MB of text and 1 MB of a colour profile.
MAX_FILE_BYTES = 1 << 29

# How a picture can differ from 8-bit RGB as it lies in its file, and what becomes of that.
KINDS = {
    "gray": "gray",
    "palette": "with a palette",
    "alpha": "with transparency, which is dropped",
    "CMYK": "CMYK",
    "space": "of another colour space",
    "deep": "of 16 bits, of which the upper 8 are taken",
    "frames": "with several frames, of which the first is taken",
    "turned": "with an EXIF orientation, which is not applied",
}
_BITS = {kind: 1 << i for i, kind in enumerate(KINDS)}
_ORIENTATION = 0x0112
_UPRIGHT = 1
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,  # Pillow's angles are counter-clockwise
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns, and logs, of odd tags and of large pictures; both are settled here. A filter rather
# than warnings.catch_warnings, which threads undo for each other (Python before 3.14).
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class Opened(NamedTuple):
    """A decoded picture.

    Attributes:
        image: its first frame, in RGB or in its own mode; 16 bits are 8 here.
        kinds: those of KINDS that it is of, in their order; empty for 8-bit RGB.
    """

    image: Image.Image
    kinds: tuple[str, ...]


def to_bits(kinds: Iterable[str]) -> int:
    """Pack some of KINDS into a byte, a bit for each."""
    return sum(_BITS[kind] for kind in kinds)


def described(bits: UInt8[np.ndarray, "N"]) -> str:
    """Count pictures by what they are: "20 CMYK, 3 gray"; empty where all are 8-bit RGB.

    Args:
        bits: `to_bits` of each.
    """
    counts = {kind: np.count_nonzero(bits & bit) for kind, bit in _BITS.items()}
    return ", ".join(f"{num} {KINDS[kind]}" for kind, num in counts.items() if num)


def read(place: Any) -> bytes:
    """Read the bytes of a picture's file.

    Args:
        place: its path, on a disk or in an object store.

    Raises:
        InputError: it is missing, no regular file or too large for a picture.
    """
    try:
        if isinstance(place, Path):
            found = os.stat(place)
            # A pipe would be waited for.
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{place} is not a file; give pictures")
            check_bytes(found.st_size, str(place))
        return place.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {place}: {error.strerror or error}") from error


def check_bytes(num: int, name: str) -> None:
    """Refuse a file that is too large for a picture before it is read.

    Args:
        num: its size.
        name: of the file.
    """
    if num > MAX_FILE_BYTES:
        raise InputError(
            f"{name} has {num:,} bytes, more than a picture can have ({MAX_FILE_BYTES:,}); is it "
            "a picture?"
        )


def check_pixels(size: tuple[int, int], name: str) -> None:
    """Refuse a picture of too many pixels before they take memory.

    Args:
        size: width and height.
        name: of the picture, for messages.
    """
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(
            f"{name} would take {size[0]}x{size[1]} pixels in memory, more than {MAX_PIXELS:,}; "
            "shrink it or leave it out"
        )


def decode(data: bytes, name: str, rgb: bool = False, upright: bool = False) -> Opened:
    """Decode a picture.

    Pixels are those of Pillow, and so of clean-fid, torch-fidelity and ADM's evaluator, but for
    16-bit gray: Pillow turns all above 255 white there, and takes the upper 8 bits of colours.

    Args:
        data: the bytes of its file, of one of FORMATS whatever its name.
        name: of the file, for messages.
        rgb: convert it to 8-bit RGB: transparency goes, gray stands in all three channels.
        upright: turn it as its EXIF orientation says, which then is none of its kinds.

    Returns:
        The picture, loaded.

    Raises:
        InputError: it is of no such format, damaged, larger than MAX_PIXELS, or of numbers that no
            white belongs to (floats, 32 bits).
    """
    what = f"{name} ({len(data)} bytes)"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_pixels(image.size, what)
            kinds = _kinds(image)
            image.load()
            turn = _TURNS.get(_orientation(image)) if upright else None
            if upright:
                kinds = tuple(kind for kind in kinds if kind != "turned")
            found = _in_8_bits(image if turn is None else image.transpose(turn), name)
            return Opened(found.convert("RGB") if rgb and found.mode != "RGB" else found, kinds)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{what} has more than {MAX_PIXELS:,} pixels, a limit here") from error
    except Image.UnidentifiedImageError as error:
        if other := readers.recognised(data[:64]):
            raise InputError(f"{what} is {other}") from error
        raise InputError(
            f"{what} is no readable picture of the formats {', '.join(FORMATS)}; write it again"
        ) from error
    except Exception as error:  # Pillow raises whatever its decoders stumble over
        said = shown(error) or type(error).__name__
        raise InputError(f"{what} is no readable picture ({said}); write it again") from error


def read_image(path: Any) -> Image.Image:
    """Read and decode an image file; it keeps its mode.

    Raises:
        InputError: it cannot be read, or is no image.
    """
    return decode(read(path), str(path)).image


def _kinds(image: ImageFile.ImageFile) -> tuple[str, ...]:
    mode, found = image.mode, set()
    if mode in ("1", "L", "LA", "I") or mode.startswith("I;16"):
        found.add("gray")
    if mode in ("P", "PA"):
        found.add("palette")
    if mode in ("RGBA", "RGBX", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        found.add("alpha")
    if mode == "CMYK":
        found.add("CMYK")
    if mode in ("YCbCr", "LAB", "HSV"):
        found.add("space")
    if any(";16" in str(tile) or _ppm_maximum(tile) > 255 for tile in image.tile):
        found.add("deep")
    if getattr(image, "is_animated", False):
        found.add("frames")
    if "exif" in image.info and _orientation(image) != _UPRIGHT:
        found.add("turned")
    return tuple(kind for kind in KINDS if kind in found)


def _ppm_maximum(tile: tuple) -> int:
    """Return the largest value of a Netpbm file whose samples Pillow scales itself; else 0."""
    return tile[3][1] if tile[0].startswith("ppm") and isinstance(tile[3], tuple) else 0


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, _UPRIGHT)
    except Exception:  # damaged tags, which say nothing of the pixels
        return _UPRIGHT


def _in_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Return the picture with its 16-bit gray levels as 8-bit ones."""
    # Netpbm's mode of 16 bits is I.
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")):
        if image.mode in ("I", "F"):
            raise InputError(
                f"{name} has {'floats' if image.mode == 'F' else '32 bits'} for pixels, of which "
                "none is known to be white; convert it to 8 bits"
            )
        return image
    levels = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
    result = Image.fromarray(levels)
    result.format, result.info = image.format, image.info
    return result
