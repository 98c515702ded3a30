"""A checksum of every file of a folder, to notice later that a disk returned something else."""

import json
import os
import zlib
from pathlib import Path

NAME = "checksums.json"
_CHUNK_BYTES = 1 << 26


def write(folder: str | os.PathLike) -> None:
    """Writes <folder>/checksums.json, with size and CRC-32 of every file that is there.

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


def check(folder: str | os.PathLike) -> None:
    """Compares a folder with its checksums, if it has any; files that came later do not count.

    Args:
        folder: a local path or gs://...

    Raises:
        ValueError: on the first file that is another one.
    """
    path = Path(folder) / NAME
    if "://" in str(folder) or not path.exists():
        return
    for name, expected in json.loads(path.read_text()).items():
        found = _sum_of(path.parent / name) if (path.parent / name).exists() else "missing"
        if found != expected:
            raise ValueError(f"{name} is not what was written: {found}, expected {expected}")


def _sum_of(path: Path) -> list[int]:
    """[size in bytes, CRC-32]."""
    size = value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            size, value = size + len(chunk), zlib.crc32(chunk, value)
    return [size, value]
