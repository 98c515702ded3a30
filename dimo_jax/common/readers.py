"""The one reader each of text, JSON, YAML and gzip: whatever a file holds becomes one sentence.

Files come from strangers and from broken downloads. Nothing here believes a size, recurses as deep
as the file says, or lets an error of a library through.
"""

import contextlib
import gzip
import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

import yaml

from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import quoted, shown

# Text and JSON that this program reads are far smaller: COCO's captions take 91 MB.
MAX_BYTES = 1 << 28
MAX_YAML_BYTES = 1 << 16  # its parser is written in Python, and slow on brackets in brackets
# Levels of lists and objects inside each other; what walks them later recurses.
MAX_DEPTH = 64
# Above 2^64 there is only transformers' model_max_length, 1e30 without an exponent.
MAX_DIGITS = 40

# What a download gone wrong begins with, and what helps.
_OTHERS = {
    b"version https://git-lfs": "a git-lfs pointer; run `git lfs pull` to get the file itself",
    b"<": "a web page; download the file itself",
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"PK\x03\x04": "a zip archive; unpack it, or give the file that belongs here",
    b"\x89HDF": "an HDF5 file; give the file that belongs here",
    b"\x93NUMPY": "a NumPy file; give the file that belongs here",
    b"\x89PNG": "a picture; give the file that belongs here",
}


def recognised(head: bytes, *own: bytes) -> str | None:
    """Say what a file is by its beginning, and what to do with it.

    Args:
        head: its first bytes.
        own: beginnings that belong to the format that was expected.

    Returns:
        "a git-lfs pointer; run ...", or None for what is not known.
    """
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for begin, what in _OTHERS.items():
        if start.startswith(begin) and begin not in own:
            return what
    return None


def content(path: Any, most: int = MAX_BYTES) -> bytes:
    """Read a file, up to a size.

    Args:
        path: a pathlib.Path, or a path of files.path in an object store.
        most: bytes; one of more is refused before it is in memory.

    Raises:
        InputError: it is missing, cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}; check the path") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or shown(error)}") from error
    except Exception as error:  # the libraries of object stores have no common error
        raise InputError(f"cannot read {path} ({type(error).__name__}: {shown(error)})") from error
    if len(data) > most:
        raise InputError(
            f"{path} has more than {most:,} bytes, which no file of this kind has; check the path"
        )
    return data


def decoded(data: bytes, where: str) -> str:
    """Decode UTF-8, without the mark that some editors put before it.

    Raises:
        InputError: it is something else; the line and the byte are named.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if what := recognised(data[:64]):
            raise InputError(f"{where} is {what}") from error
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{where} is not UTF-8 (line {line}, byte 0x{data[error.start]:02x}); save it as UTF-8"
        ) from error


def text(path: Any, most: int = MAX_BYTES) -> str:
    """Read a text file.

    Raises:
        InputError: as `content` and `decoded`.
    """
    return decoded(content(path, most), str(path))


def parse_json(data: bytes | str, where: str) -> Any:
    """Parse JSON.

    Args:
        data: bytes must be UTF-8.
        where: the file, or file and line, for messages.

    Returns:
        Plain values, at most MAX_DEPTH levels deep. Numbers may be NaN or infinite.

    Raises:
        InputError: it is something else, too deep, or has a number of more than MAX_DIGITS digits.
    """
    found = decoded(data, where) if isinstance(data, bytes) else data
    if not found.strip():
        raise InputError(f"{where} is empty, expected JSON; copy or download it again")
    try:
        value = json.loads(found, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        if what := recognised(found[:64].encode("utf-8", "replace")):
            raise InputError(f"{where} is {what}") from error
        deep = isinstance(error, RecursionError)
        reason = _too_deep() if deep else shown(error)
        if isinstance(error, json.JSONDecodeError):
            reason += f", at {quoted(found[max(error.pos - 10, 0) : error.pos + 20])}"
        raise InputError(f"{where} is not JSON ({reason}); copy or download it again") from error
    if found.count("[") + found.count("{") > MAX_DEPTH:
        _check_depth(value, where)
    return value


def json_value(path: Any, most: int = MAX_BYTES) -> Any:
    """Read a file of JSON.

    Raises:
        InputError: as `content` and `parse_json`.
    """
    return parse_json(content(path, most), str(path))


def json_object(path: Any, most: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        InputError: as `json_value`, or it holds another value.
    """
    return as_object(json_value(path, most), str(path))


def as_object(value: Any, where: str) -> dict[str, Any]:
    """Give back a JSON object, and refuse every other value."""
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise InputError(f"{where} is not a JSON object but a {kind}; give the file it should be")
    return value


@contextlib.contextmanager
def well_typed(where: str) -> Iterator[None]:
    """Turn what fields of the wrong type raise, inside the block, into one sentence.

    Args:
        where: what the fields are of, for the message.

    Raises:
        InputError: naming the error.
    """
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, IndexError) as error:
        reason = f"{type(error).__name__}: {shown(error)}"
        raise InputError(
            f"{where} has a field that is missing or of another type ({reason}); download it again"
        ) from error


def parse_yaml(found: str, where: str) -> Any:
    """Parse YAML of plain values; aliases, with which 1 kB can stand for gigabytes, are refused.

    Raises:
        InputError: it is something else, too large or too deep.
    """
    # A pointer of git-lfs is a plain scalar to YAML.
    if what := recognised(found[:64].encode("utf-8", "replace")):
        raise InputError(f"{where} is {what}")
    try:
        if len(found) > MAX_YAML_BYTES:
            raise ValueError(f"it has more than {MAX_YAML_BYTES:,} characters")
        steps = (((x in "[{") - (x in "]}")) for x in found)
        if max(itertools.accumulate(steps), default=0) > MAX_DEPTH:
            raise RecursionError
        if any(isinstance(x, yaml.AliasToken) for x in yaml.scan(found, yaml.SafeLoader)):
            raise ValueError("it has aliases (*name)")
        value = yaml.safe_load(found)
    # Beside its own errors PyYAML raises ValueError, IndexError, TypeError ... on odd scalars.
    except Exception as error:
        deep = isinstance(error, RecursionError)
        reason = _too_deep() if deep else shown(" ".join(str(error).split()))
        raise InputError(f"{where} is not YAML ({reason}); copy or download it again") from error
    _check_depth(value, where)
    return value


def unzip(data: bytes, where: str, most: int) -> bytes:
    """Unpack gzip, up to a size.

    Raises:
        InputError: it is damaged, something else, or unpacks to more.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            found = file.read(most + 1)
    except Exception as error:  # OSError, EOFError, zlib.error, struct.error
        what = recognised(data[:64], b"\x1f\x8b")
        raise InputError(
            f"{where} is {what or f'damaged or no gzip file ({shown(error)}); copy it again'}"
        ) from error
    if len(found) > most:
        raise InputError(
            f"{where} of {len(data):,} bytes unpacks to more than {most:,}, which no such file "
            "does; give the file that belongs here"
        )
    return found


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _too_deep() -> str:
    return f"more than {MAX_DEPTH} levels inside each other"


def _check_depth(value: Any, where: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for x in level
            if isinstance(x, dict | list)
            for inner in (x.values() if isinstance(x, dict) else x)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise InputError(f"{where} has {_too_deep()}; give the file that it should be")
