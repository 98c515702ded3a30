"""One set of images as every source of them has it: by index, strictly, with names for messages.

Axes: N images, H height, W width.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from dimo_jax.common import readers
from dimo_jax.common.errors import InputError


class Batch(NamedTuple):
    """Consecutive images of a set.

    Attributes:
        pixels: uint8, RGB.
        kinds: what each was in its file, see pictures.to_bits; 0 for 8-bit RGB.
    """

    pixels: UInt8[np.ndarray, "N H W 3"]
    kinds: UInt8[np.ndarray, "N"]


class ImageSet:
    """Images in a fixed order, all of one size.

    Attributes:
        where: the path or name it was opened by.
        num: images.
        height: of every image, pixels.
        width: likewise.
        labels: [N] int, the class of each where the set tells it; else None.
        class_names: of the labels; empty where the set does not tell them.
        facts: what the set says of its making, e.g. {"sampler": ..., "seed": ...}.
        notes: what lies in the same place and is not in the set, each in a sentence.
    """

    height: int
    width: int
    labels: Int[np.ndarray, "N"] | None = None
    class_names: Sequence[str] = ()

    def __init__(self, where: str, num: int):
        self.where, self.num = where, num
        self.facts: dict[str, Any] = {}
        self.notes: list[str] = []
        if not num:
            raise InputError(f"{where} has no images")

    def name(self, index: int) -> str:
        """Return the name of an image, for messages."""
        return f"image {index} of {self.where}"

    def is_jpeg(self) -> bool:
        """Return whether any image lies in a JPEG file, whose artefacts a FID sees."""
        return False

    def pairs_with(self, other: "ImageSet") -> bool:
        """Return whether each image is made from that of the same index in another set."""
        return False

    def identity(self, start: int, stop: int) -> str:
        """Return a text that changes when these images do, as far as is known without decoding."""
        raise NotImplementedError

    def read(self, start: int, stop: int) -> Batch:
        """Return the images [start, stop); cheapest in rising order.

        Raises:
            InputError: naming all of them that cannot be used.
        """
        raise NotImplementedError


def digest(*lines: str) -> str:
    """SHA-256 of some lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_settings(text: str, path: Path) -> dict[str, Any]:
    """Return what dimo_jax.sample says of the samples."""
    where = f"the record of settings in {path}"
    return readers.as_object(readers.parse_json(text, where), where)
