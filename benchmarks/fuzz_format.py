"""One format of benchmarks/fuzz.py, and what the makers of files share."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        file: the file that is mutated, inside the format's folder.
        make: folder -> writes it, and what must lie beside it.
        read: its path -> reads it as the commands do.
        repack: (content, random numbers) -> content whose checksums fit what was changed inside.
    """

    file: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    repack: Callable[[bytes, np.random.Generator], bytes] | None = None


def write_json(value: Any) -> Callable[[Path], None]:
    """Make a file of JSON."""
    return lambda path: path.write_text(json.dumps(value))


def into(name: str, write: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Make a file of a folder's name."""
    return lambda folder: write(folder / name)


def text_file(name: str, data: bytes, read: Callable[[Path], Any]) -> Format:
    """Make the format of a file with that content."""
    return Format(name, into(name, lambda path: path.write_bytes(data)), read)


def json_file(name: str, value: Any, read: Callable[[Path], Any]) -> Format:
    """Make the format of a file with that JSON value."""
    return Format(name, into(name, write_json(value)), read)
