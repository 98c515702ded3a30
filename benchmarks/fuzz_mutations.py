"""What benchmarks/fuzz.py does to a file: damage, and what a hostile hand would write."""

import io
import json
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

_NUMBERS = (
    *(b"0", b"-1", b"1", b"3", b"2147483648", b"1000000000", b"9223372036854775808"),
    *(b"1e400", b"NaN", b"-0.5", b"1.5", b"9" * 6000, b"null", b'"x"', b"true", b"[1]"),
)
_WORDS = (
    *(b"\x1b]0;x\x07", b"\xff\xfe", b"\xed\xa0\x80", b"\x00", b"\n", b"[" * 3000, b'{"a":' * 3000),
    *(b"\xe2\x80\xae", b"../../x", b"(" * 500, b"*a", b"&a [*a]", b"!!python/name:os.system"),
)
_WHOLE = (
    *(b"", b"\n", b"{}", b"[]", b"null", b"0", b'"x"', b"[" * 100_000, b"\x80\x04."),
    *(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", b"<!DOCTYPE html>"),
    *(
        b"%!PS\n(x) print",
        b"PK\x05\x06" + bytes(18),
        b"\x93NUMPY\x01\x00",
        b"\x1f\x8b\x08" + bytes(9),
    ),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 3, 1.5, 10**9, 10**30, 1e308, float("nan"), float("inf")),
    *("", "x", "\x1b[31m", "\ud800", "../x", "a" * 2000, [], {}, [1], [[]], {"a": 1}, [None] * 70),
)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Change a file in one way, or in a few."""
    if rng.random() < 0.03:
        return _WHOLE[rng.integers(len(_WHOLE))]
    if rng.random() < 0.4 and (changed := _json(data, rng)) is not None:
        return changed
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        data = _BYTES[rng.integers(len(_BYTES))](data, rng)
    return data


def zip_member(data: bytes, rng: np.random.Generator) -> bytes:
    """Change one member of a zip archive, its checksum with it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = list(members)[rng.integers(len(members))]
    if rng.random() < 0.1:
        members[f"{name}\x1b[2J" if rng.random() < 0.5 else "other"] = members.pop(name)
    else:
        members[name] = mutated(members[name], rng)
    kinds = [zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]
    return zipped(members, kinds[rng.integers(3)])


def zipped(members: Mapping[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    """Make an archive; the same bytes at any time of day."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, kind)
    return buffer.getvalue()


def bomb(data: bytes, rng: np.random.Generator) -> bytes:
    """Change one member of an archive, or make all of them 64 MB of zeros."""
    if rng.random() < 0.9:
        return zip_member(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    return zipped(dict.fromkeys(names, bytes(1 << 26)), zipfile.ZIP_DEFLATED)


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _head(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a flipped bit where sizes are declared."""
    near = data[:256] if rng.random() < 0.5 else data[-256:]
    changed = _flip(near, rng)
    return changed + data[256:] if near == data[:256] else data[:-256] + changed


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(len(data) + 1)]


def _span(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    start = int(rng.integers(len(data) + 1))
    return start, min(len(data), start + int(rng.choice([1, 4, 16, 256, 4096])))


def _remove(data: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + data[stop:]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _span(data, rng)
    return data[:stop] + data[start:stop] * int(rng.choice([1, 2, 100])) + data[stop:]


def _noise(data: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + rng.bytes(stop - start) + data[stop:]


def _word(data: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(data) + 1))
    return data[:start] + _WORDS[rng.integers(len(_WORDS))] + data[start:]


def _digits(data: bytes, rng: np.random.Generator) -> bytes:
    """Another number in place of one that is written in digits."""
    found = [match.span() for match in re.finditer(rb"-?\d+(\.\d+)?", data)]
    if not found:
        return _binary(data, rng)
    start, stop = found[rng.integers(len(found))]
    return data[:start] + _NUMBERS[rng.integers(len(_NUMBERS))] + data[stop:]


def _binary(data: bytes, rng: np.random.Generator) -> bytes:
    """Another number in place of 1 to 8 bytes."""
    size = int(rng.choice([1, 2, 4, 8]))
    if len(data) < size:
        return data
    start = int(rng.integers(len(data) - size + 1))
    number = [0, 1, 1 << 8 * size - 1, (1 << 8 * size) - 1][rng.integers(4)]
    order = "little" if rng.random() < 0.6 else "big"
    return data[:start] + number.to_bytes(size, order) + data[start + size :]


_BYTES = (_flip, _head, _cut, _remove, _repeat, _noise, _word, _digits, _digits, _binary)


def _json(data: bytes, rng: np.random.Generator) -> bytes | None:
    """Another value in place of one of a JSON file, or of a line of one; None if it is none."""
    head, lines = data[:1], [data]
    if head not in (b"{", b"["):
        return None
    if b"\n{" in data:
        lines = data.split(b"\n")
    index = int(rng.integers(len(lines)))
    try:
        tree = json.loads(lines[index])
    except ValueError:
        return None
    places: list[tuple[Any, Any]] = []
    stack = [tree] if isinstance(tree, dict | list) else []
    while stack:
        inner = stack.pop()
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        for key in keys:
            places.append((inner, key))
            if isinstance(inner[key], dict | list):
                stack.append(inner[key])
    if not places:
        return None
    for _ in range(int(rng.choice([1, 1, 2]))):
        inner, key = places[rng.integers(len(places))]
        if rng.random() < 0.15 and isinstance(inner, dict):
            inner.pop(key, None)
        else:
            value = _VALUES[rng.integers(len(_VALUES))]
            if isinstance(inner, dict) or key < len(inner):
                inner[key] = value
    lines[index] = json.dumps(tree).encode("utf-8", "surrogatepass")
    return b"\n".join(lines)
