"""The one reader each of zip archives, .npz and .npy: every declared size is checked first.

What an archive says of its members is compared with the file's own size and with what its
compression can do, an array's header with its member, before anything is allocated.
"""

import contextlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dimo_jax.common import files, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown

# Deflate makes 258 bytes of 2 bits at most; the rest is for members of a few bytes.
_DEFLATE_RATIO, _SMALL_BYTES = 1032, 1024
MAX_STORE_BYTES = 1 << 34  # of an archive in an object store, which is read whole
_SUM_BYTES = 4
_KINDS = "biufcUSV"  # of dtypes; V: bfloat16, which NumPy's format does not know
_AGAIN = "copy or make it again"


def open_zip(place: Any, where: str | None = None) -> zipfile.ZipFile:
    """Open a zip archive whose members have credible sizes.

    Args:
        place: its path, or its bytes.
        where: what messages call it; None: its path.

    Raises:
        InputError: it is missing, damaged, something else, or has members that overlap, are larger
            than can be, are encrypted, or compressed otherwise than by deflate.
    """
    where = where or str(place)
    with explained(where, place):
        if not isinstance(place, bytes | Path):  # in an object store
            place = readers.content(place, MAX_STORE_BYTES)
        if isinstance(place, Path):
            size, source = place.stat().st_size, place
        else:
            size, source = len(place), io.BytesIO(place)
        archive = zipfile.ZipFile(source)
        try:
            _check_members(archive, size)
        except BaseException:
            archive.close()
            raise
        return archive


def _check_members(archive: zipfile.ZipFile, file_bytes: int) -> None:
    infos = archive.infolist()
    for info in infos:
        if info.flag_bits & 1:
            raise ValueError(f"the member {shown(info.filename)} is encrypted")
        if info.compress_type == zipfile.ZIP_STORED:
            credible = info.file_size == info.compress_size
        elif info.compress_type == zipfile.ZIP_DEFLATED:
            credible = info.file_size <= _DEFLATE_RATIO * info.compress_size + _SMALL_BYTES
        else:
            raise ValueError(f"the member {shown(info.filename)} is not compressed by deflate")
        if not credible or info.header_offset + info.compress_size > file_bytes:
            raise ValueError(
                f"the member {shown(info.filename)} says it has {info.file_size:,} bytes, which "
                f"{file_bytes:,} of the file cannot hold"
            )
    if sum(info.compress_size for info in infos) > file_bytes:
        raise ValueError("its members overlap")
    if len({info.filename for info in infos}) < len(infos):
        raise ValueError("two members have one name")


def read_member(archive: zipfile.ZipFile, name: str, where: str, most: int) -> bytes:
    """Read a member of an archive of `open_zip`, and compare its checksum.

    Args:
        archive: the archive.
        name: of the member.
        where: what messages call the archive.
        most: bytes that it may have.

    Raises:
        InputError: it is missing, damaged or larger.
    """
    with explained(f"{shown(name)} in {where}"):
        info = archive.getinfo(name)
        if info.file_size > most:
            raise ValueError(f"it has {info.file_size:,} bytes, expected {most:,} at most")
        return archive.read(info)


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of an open .npz by name, each read when it is used."""

    def __init__(self, archive: zipfile.ZipFile, where: str):
        self._archive, self._where = archive, where
        names = [x.filename for x in archive.infolist() if x.filename.endswith(".npy")]
        self._names = [name.removesuffix(".npy") for name in names]

    def __iter__(self) -> Iterator[str]:
        """Names in the order of the file."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        """Return whether there is one of that name; it is not read."""
        return name in self._names

    def __getitem__(self, name: str) -> np.ndarray:
        """Read one.

        Raises:
            InputError: it is missing, damaged, of objects, or has another size than it says.
        """
        if name not in self._names:
            raise InputError(
                f"{self._where} has {shown(', '.join(self._names)) or 'nothing'}, but no {name}; "
                f"{_AGAIN}"
            )
        with explained(f"{name} of {self._where}"):
            info = self._archive.getinfo(f"{name}.npy")
            with self._archive.open(info) as stream:
                shape, fortran, dtype = read_npy_header(stream, info.file_size)
                array = np.empty(math.prod(shape), dtype)
                # typeshed: a zipfile.ZipExtFile is more than an IO[bytes]
                stream.readinto(array.view(np.uint8))  # pyright: ignore[reportAttributeAccessIssue]
                # The checksum is compared where the member ends.
                if stream.read(1) or stream.tell() != info.file_size:
                    raise ValueError("it ends before its size")
            return array.reshape(shape, order="F" if fortran else "C")


@contextlib.contextmanager
def open_npz(place: Any, where: str | None = None) -> Iterator[Arrays]:
    """Open an .npz; its arrays are read when they are used.

    Args:
        place: its path, or its bytes.
        where: what messages call it; None: its path.

    Raises:
        InputError: as `open_zip`.
    """
    with open_zip(place, where) as archive:
        yield Arrays(archive, where or str(place))


def save_npz(place: Any, **arrays: Any) -> None:
    """Write an .npz, which appears whole; see files.writing."""
    with files.writing(place) as file:
        np.savez(file, **arrays)


def write_npy(file: BinaryIO, array: np.ndarray) -> None:
    """Write an array in NumPy's format, and the CRC-32 of its values behind it.

    NumPy's own readers take no notice of what follows the values.
    """
    array = np.ascontiguousarray(array)
    np.lib.format.write_array(file, array)
    file.write(zlib.crc32(array).to_bytes(_SUM_BYTES, "little"))


def map_npy(path: Path, check: bool = False) -> np.ndarray:
    """Map an .npy file, read-only.

    Args:
        path: with a checksum as `write_npy` leaves it, or without.
        check: compare the checksum, if there is one; it reads all of the file.

    Raises:
        InputError: it is missing, something else, damaged, or has another size than it says.
    """
    with explained(str(path), path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        shape, fortran, dtype = read_npy_header(file, size, _SUM_BYTES)
        start = file.tell()
        mapped = np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C")
        file.seek(start + mapped.nbytes)
        expected = file.read()
        if check and expected and zlib.crc32(mapped).to_bytes(_SUM_BYTES, "little") != expected:
            raise ValueError("its values are not those that were written")
        return mapped


def read_npy_header(
    stream: Any, num_bytes: int, behind: int = 0
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the head of an array in NumPy's format; the stream is left at its first value.

    Args:
        stream: at the beginning.
        num_bytes: of head and values together.
        behind: of these, bytes that may follow the values, or not.

    Returns:
        (shape, whether in Fortran's order, dtype).

    Raises:
        ValueError: it is damaged, of objects, or of another size. NumPy raises others as well.
    """
    major, minor = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get((major, minor))
    if read is None:
        raise ValueError(f"it is of the version {major}.{minor} of NumPy's format")
    shape, fortran, dtype = read(stream)
    if dtype.kind not in _KINDS or dtype.names or dtype.subdtype or not dtype.itemsize:
        raise ValueError(f"it has the dtype {shown(dtype)}, expected numbers")
    said, found = math.prod(shape) * dtype.itemsize, num_bytes - stream.tell()
    if min(shape, default=0) < 0 or said not in (found, found - behind):
        raise ValueError(
            f"its shape {shown(list(shape))} is {said:,} bytes and {found:,} are there"
        )
    return shape, fortran, dtype


@contextlib.contextmanager
def explained(where: str, place: Any = None) -> Iterator[None]:
    """Turn whatever reading raises, inside the block, into one sentence.

    Args:
        where: what is read, for the message.
        place: its path or bytes, from whose beginning another kind of file is recognised.

    Raises:
        InputError: the sentence.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"there is no file {where}; check the path") from error
    # zipfile, zlib and NumPy raise some twelve kinds on bytes that they dislike.
    except Exception as error:
        if what := _recognised(place):
            raise InputError(f"{where} is {what}") from error
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        reason = f"{type(error).__name__}: {shown(said)}"
        raise InputError(f"{where} cannot be read ({reason}); {_AGAIN}") from error


def _recognised(place: Any) -> str | None:
    if place is None:
        return None
    try:
        if isinstance(place, bytes):
            head = place[:64]
        else:
            with place.open("rb") as file:
                head = file.read(64)
    except OSError:
        return None
    return readers.recognised(head, b"PK\x03\x04", b"\x93NUMPY")
