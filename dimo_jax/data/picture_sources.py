"""The pictures that are encoded, wherever they lie."""

import contextlib
import os
from collections.abc import Callable

import numpy as np

from dimo_jax.common import files, pictures
from dimo_jax.common.errors import InputError
from dimo_jax.common.picture_folder import METADATA
from dimo_jax.data import prompt_files, splits
from dimo_jax.data.picture_folders import Folder
from dimo_jax.data.pictures import CONDITIONS, Dataset, PictureSource

NUM_LOOKED_AT = 32


def unusual(source: PictureSource) -> str:
    """Look at pictures here and there, and say what becomes of those that are not 8-bit RGB.

    Args:
        source: the pictures.

    Returns:
        "of 32 pictures looked at 20 with transparency, which is dropped"; empty for none. Those
        that cannot be read are passed over.
    """
    found = []
    places = np.linspace(0, source.num - 1, min(NUM_LOOKED_AT, source.num)).round()
    for index in places.astype(int).tolist():
        with contextlib.suppress(InputError):
            found.append(pictures.to_bits(source.kinds(index)))
    text = pictures.described(np.array(found, np.uint8))
    return f"of {len(found)} pictures looked at {text}" if text else ""


def open_pictures(
    data: str | os.PathLike,
    condition: str = "",
    field: str = "",
    data_dir: str | os.PathLike = prompt_files.DATA_DIR,
    follow_links: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> PictureSource:
    """Return pictures with their classes or captions; no picture has been read.

    Args:
        data: tfds:NAME:SPLIT (a built-in set too), or a folder on a disk.
        condition: of CONDITIONS, what each picture has beside it; empty for what there is, a label
            rather than a text.
        field: that holds it, as for pictures.Dataset and picture_folders.Folder.
        data_dir: where tensorflow-datasets lie.
        follow_links: those that lead out of the folder.
        progress: called while a long metadata.jsonl is read, as Progress.update.

    Raises:
        InputError: there is nothing of that kind; names, labels or captions are not as expected.
    """
    if condition not in ("", *CONDITIONS):
        raise InputError(f"the condition is {condition!r}, expected {', '.join(CONDITIONS)}")
    where = os.fspath(data)
    if where.startswith(splits.DATASET):
        return Dataset(where, condition, field, data_dir)
    folder = files.local(where)
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}; give one with a sub-folder for each class, or with "
            f"pictures and a {METADATA}, or tfds:NAME:SPLIT"
        )
    return Folder(folder, condition, field, follow_links, progress)
