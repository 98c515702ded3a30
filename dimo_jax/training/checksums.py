"""A checksum of every file of a folder, to notice later that a disk returned something else."""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimo_jax.common import readers

NAME = "checksums.json"
FIELD = "crc32"  # of a JSON file, over its other fields
CHUNK_BYTES = 1 << 26


def write(folder: str | os.PathLike) -> None:
    """Write <folder>/checksums.json, with size and CRC-32 of every file that is there.

    It reads them all back, mostly from the system's memory. An object store (gs://...) checks what
    it holds itself, and nothing is written.

    Args:
        folder: a local path or gs://...
    """
    if "://" in str(folder):
        return
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != NAME)
    sums = {path.relative_to(root).as_posix(): _sum_of(path) for path in files}
    (root / NAME).write_text(json.dumps(sums))


def check(folder: str | os.PathLike, required: bool = False) -> None:
    """Compare a folder with its checksums, if it has any; files that came later do not count.

    Args:
        folder: a local path or gs://...
        required: whether it must have some, on a disk.

    Raises:
        ValueError: on the first file that is another one, or the checksums are missing or damaged.
    """
    path = Path(folder) / NAME
    if "://" in str(folder):
        return
    if not path.exists():
        if required:
            raise ValueError(f"{NAME}, which was written with it, is missing")
        return
    for name, expected in readers.json_object(path).items():
        found = _sum_of(path.parent / name) if (path.parent / name).exists() else "missing"
        if found != expected:
            raise ValueError(f"{name} is not what was written: {found}, expected {expected}")


def signed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Add to the fields of a JSON file a checksum of them.

    It also tells a checkpoint that was written with checksums from one of before there were any.
    """
    plain = json.loads(json.dumps(dict(fields)))  # as they will be read: names are text
    return {**plain, FIELD: _sum_of_fields(plain)}


def check_signed(fields: Mapping[str, Any]) -> None:
    """Compare the fields of a JSON file with their checksum, if they have one.

    Raises:
        ValueError: they are others than were written.
    """
    rest = {name: value for name, value in fields.items() if name != FIELD}
    if FIELD in fields and fields[FIELD] != _sum_of_fields(rest):
        raise ValueError("its metadata are not what was written")


def _sum_of_fields(fields: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


def _sum_of(path: Path) -> list[int]:
    """[size in bytes, CRC-32]."""
    size = value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            size, value = size + len(chunk), zlib.crc32(chunk, value)
    return [size, value]
