"""Pictures of a tensorflow-datasets data set by index, as 8-bit RGB."""

import os

import numpy as np
from jaxtyping import UInt8

from dimo_jax.common.errors import InputError
from dimo_jax.data import splits
from dimo_jax.data.built_in import BuiltIn
from dimo_jax.data.digits import Digits
from dimo_jax.data.emoji import Emoji

BUILT_IN: dict[str, type[BuiltIn]] = {"digits": Digits, "emoji": Emoji}


class Source:
    """A split whose pictures are read one at a time.

    Attributes:
        version: changes when the pictures do.
    """

    def __init__(self, examples, key: str, version: str):
        self._examples, self._key, self.version = examples, key, version

    def __len__(self) -> int:
        """Return the pictures in the split."""
        return len(self._examples)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Read a picture; a single channel stands in all three, a fourth is dropped."""
        pixels = np.asarray(self._examples[index][self._key])[..., :3]
        if pixels.shape[2] == 2:  # gray and its transparency
            pixels = pixels[..., :1]
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def open_source(name: str, split: str, data_dir: str | os.PathLike) -> Source:
    """Return the pictures of a split.

    Args:
        name: one of BUILT_IN, which is made on the spot, or a data set that tensorflow-datasets
            knows; one that is not in data_dir is downloaded where its authors allow that.
        split: e.g. "train", or "train[:1000]".
        data_dir: parent directory of the data sets, in the format array_record.

    Returns:
        The pictures in the data set's order, all uint8.

    Raises:
        InputError: it cannot be opened or has no pictures.
    """
    if name in BUILT_IN:
        levels = BUILT_IN[name].load(split, data_dir).images * 255.0
        found = [{"image": x} for x in (levels + 0.5).astype(np.uint8)]
        return Source(found, "image", str(BUILT_IN[name].VERSION))
    features, examples, version = splits.open_split(name, split, data_dir)
    keys = [k for k, x in features.items() if len(x.shape or ()) == 3 and x.dtype == np.uint8]
    if not keys:
        raise InputError(f"{name} has {', '.join(features)}, but no picture of 8 bits")
    return Source(examples, keys[0], version)
