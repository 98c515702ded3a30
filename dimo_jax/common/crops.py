"""One picture to the square that a tokenizer sees, as MaskGit's teachers were trained.

The shorter side is resized, then a square is cut out of the middle or anywhere, then the picture
may be mirrored. Where it is cut, and whether it is mirrored, follow from (seed, index, view) alone:
whoever reads a picture, in whatever order, gets the same square.

Axes: H height, W width, S pixels along a side of the square.

Source: valeoai/Maskgit-pytorch and Halton-MaskGIT, Dataset/dataloader.py: torchvision's Resize
(bilinear, antialiased), then RandomCrop and RandomHorizontalFlip (v1) or CenterCrop (v2).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dimo_jax.common import fields, pictures
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import quoted

# Pillow averages over all pixels that a new one covers, with each of them.
FILTERS: Mapping[str, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CROPS = ("centre", "random")
SMALL = ("refuse", "enlarge")
# Of `Settings`, what is no size.
_RULES: Mapping[str, fields.Rule] = {
    "crop": fields.names(*CROPS),
    "flip": fields.SWITCH,
    "filter": fields.names(*FILTERS),
    "small": fields.names(*SMALL),
    "seed": fields.whole(0),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How pictures are cut.

    Attributes:
        image_size: S.
        crop: of CROPS.
        flip: mirror every other picture, by chance, left to right.
        filter: of FILTERS.
        small: of SMALL: what becomes of a picture whose shorter side is below S.
        seed: of what is left to chance, 0 to 2^31 - 1.
    """

    image_size: int
    crop: str = "centre"
    flip: bool = False
    filter: str = "bilinear"
    small: str = "refuse"
    seed: int = 0


def from_plain(image_size: int, found: Mapping[str, Any], where: str) -> Settings:
    """Return the settings that a file tells of.

    Args:
        image_size: S.
        found: plain values by name; others are passed over.
        where: the file, for messages.

    Raises:
        InputError: one is missing or not possible.
    """
    for name, rule in _RULES.items():
        if not rule.holds(found.get(name)):
            value = quoted(found.get(name))
            raise InputError(f"{where}: {name} is {value}; it must be {rule.words}")
    return Settings(image_size, **{name: found[name] for name in _RULES})


def cut(
    pixels: UInt8[np.ndarray, "H W 3"],
    settings: Settings,
    index: int,
    view: int,
    name: str = "a picture",
) -> UInt8[np.ndarray, "S S 3"]:
    """Cut the square out of a picture.

    Args:
        pixels: RGB.
        settings: how.
        index: of the picture in its set.
        view: which of its augmented versions.
        name: of the picture, for messages.

    Raises:
        InputError: it is smaller than S and settings.small is "refuse", or so narrow that it would
            become too large on the way.
    """
    return _square(_resized(Image.fromarray(pixels), settings, name), settings, index, view)


def views(
    pixels: UInt8[np.ndarray, "H W 3"],
    settings: Settings,
    index: int,
    num: int,
    name: str = "a picture",
) -> UInt8[np.ndarray, "V S S 3"]:
    """Cut the squares of the first V = num views, which share what resizing costs; see `cut`."""
    image = _resized(Image.fromarray(pixels), settings, name)
    return np.stack([_square(image, settings, index, view) for view in range(num)])


def _square(image: Image.Image, settings: Settings, index: int, view: int) -> np.ndarray:
    size = settings.image_size
    row, column, mirror = _chances(settings.seed, index, view)
    below, right = image.height - size, image.width - size
    top, left = round(below / 2), round(right / 2)  # as torchvision: halves to the even side
    if settings.crop == "random":
        top, left = _below(row, below + 1), _below(column, right + 1)
    found = np.asarray(image.crop((left, top, left + size, top + size)))
    return np.ascontiguousarray(found[:, ::-1]) if settings.flip and _below(mirror, 2) else found


def _resized(image: Image.Image, settings: Settings, name: str) -> Image.Image:
    size, (width, height) = settings.image_size, image.size
    short = min(width, height)
    if short < size and settings.small == "refuse":
        raise InputError(
            f"{name} is {width}x{height} pixels, smaller than the {size} asked for; leave it out, "
            "give a smaller size, or --small=enlarge"
        )
    scaled = (size * width // short, size * height // short)
    pictures.check_pixels(scaled, name)
    return image if scaled == image.size else image.resize(scaled, FILTERS[settings.filter])


def _chances(seed: int, index: int, view: int) -> list[int]:
    """Return three independent numbers of 64 bits, the same in every release of NumPy."""
    words = np.random.SeedSequence([seed, index, view]).generate_state(3, np.uint64)
    return [int(word) for word in words]


def _below(chance: int, num: int) -> int:
    """Return one of 0 .. num - 1, each as likely as the others to one part in 2^64 / num."""
    return chance * num >> 64
