"""Files and folders that appear whole or not at all, on a disk or in an object store (gs://, s3://).

On a disk they are written elsewhere, then renamed. An object appears only when all of it has
arrived, so it is written where it belongs; a folder of objects cannot be renamed, see
`write_folder`. `path` is the door: what it returns has the methods of pathlib.Path wherever it is.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from dimo_jax.common import object_store
from dimo_jax.common.object_store import STORES, AnyPath, Content, is_remote
from dimo_jax.errors import InputError

from dimo_jax.common.shown import shown
# The commands report a full disk in their own words (dimo_jax/cli.py); it is no fault of the path.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_MAX_NAME_BYTES = 255  # of a file, on every file system in use


def path(place: str | os.PathLike) -> AnyPath:
    """A path from what a user typed: a flag or a field of a config.

    Args:
        place: a local path, gs://bucket/... or s3://bucket/...; what this function returned stays
            as it is.

    Returns:
        A pathlib.Path, or for an object store an etils.epath.Path.

    Raises:
        InputError: it is another kind of address, no name that a disk takes, the package for it is
            missing, or the store cannot be reached.
    """
    if is_remote(place) and not isinstance(place, str):
        return place
    address = re.match(r"(\w+)://([^/]*)", os.fspath(place))
    if address is None:
        return _named(place)
    kind, bucket = address.groups()
    if kind not in STORES or not bucket:
        known = " or ".join(f"{name}://bucket/..." for name in STORES)
        raise InputError(f"{place} is no place that can be used; give a local path, {known}")
    return object_store.open_path(place, kind)


def local(place: str | os.PathLike) -> Path:
    """A path from what a user typed, where only a disk will do.

    Args:
        place: a local path.

    Raises:
        InputError: it is in an object store.
    """
    if is_remote(place):
        raise InputError(f"{place} is not on a disk, as it must be here; copy it, or name another")
    return _named(place)


def _named(place: str | os.PathLike) -> Path:
    """Refuses a name that no disk takes: on one, pathlib raises instead of finding nothing."""
    try:
        longest = max(map(len, os.fsencode(place).split(b"/")))
    except UnicodeEncodeError:
        longest = -1
    if not 0 <= longest <= _MAX_NAME_BYTES or "\0" in os.fspath(place):
        raise InputError(f"{shown(place)} is no name that a disk takes; give another path")
    return Path(place)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    with open(path, "wb") as file:
        yield file
        file.flush()
        # A rename may reach the disk before the bytes; a power cut would then leave an empty file.
        os.fsync(file.fileno())


@contextlib.contextmanager
def writing(place: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write to, piece by piece, that takes its name when the block ends without error.

    Args:
        place: the file; one that exists is replaced, its folder is created.

    Raises:
        InputError: the path cannot be written.
        OSError: the disk is full.
    """
    target = path(place)
    if is_remote(target):
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            object_store.put(target, iter(lambda: file.read(1 << 24), b""))
        return
    temporary = target.with_name(f".{target.name}.writing")
    with _explained(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _synced(temporary) as file:
                yield file
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def check_writable(place: str | os.PathLike) -> None:
    """Before the work that makes a file: tries one where it or its folders will be, unnamed.

    Args:
        place: the file or folder to come; in a store nothing is looked at.

    Raises:
        InputError: it cannot be written there.
        OSError: the disk is full.
    """
    target = path(place)
    if is_remote(target):
        return
    with _explained(target):
        there = next(folder for folder in target.parents if folder.exists())
        with tempfile.TemporaryFile(dir=there):
            pass


def write_file(place: str | os.PathLike, data: bytes) -> AnyPath:
    """Writes a file atomically, creating its folder.

    Args:
        place: the file; one that exists is replaced.
        data: its whole content.

    Returns:
        The path.

    Raises:
        InputError: the path cannot be written.
        OSError: the disk is full.
    """
    target = path(place)
    if is_remote(target):
        object_store.put(target, data)
        return target
    with writing(target) as file:
        file.write(data)
    return target


def write_folder(
    place: str | os.PathLike, files: Mapping[str, Content] | Iterable[tuple[str, Content]]
) -> AnyPath:
    """Writes a folder of files; a folder of that name is replaced whole.

    A folder cannot be renamed over one that is not empty, so the old one steps aside first. If the
    process is killed between the two renames, the old one is still complete at `replaced(path)`.

    In an object store the first of the files stands for the folder: the old one is removed before
    anything else is touched, and the new one written when all others are there. Where it is
    missing, the folder is not complete.

    Args:
        place: the folder.
        files: content by path inside the folder ("config.json", "tokenizer/config.json"), or such
            pairs, which need not all be in memory at once; a content is bytes or pieces of them.

    Returns:
        The path.

    Raises:
        InputError: the path cannot be written.
        OSError: the disk is full.
    """
    pairs = files.items() if isinstance(files, Mapping) else files
    if is_remote(place):
        return _write_objects(path(place), iter(pairs))
    target = Path(os.path.abspath(place))  # "." has no name that a sibling could be called after
    temporary, old = target.with_name(f".{target.name}.writing"), replaced(target)
    with _explained(target):
        try:
            # Left by an earlier process that was killed while it wrote.
            shutil.rmtree(temporary, ignore_errors=True)
            for name, data in pairs:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                with _synced(temporary / name) as file:
                    file.writelines([data] if isinstance(data, bytes) else data)
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.rename(target, old)
            os.rename(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists() and not target.exists():
                os.rename(old, target)
            raise
    shutil.rmtree(old, ignore_errors=True)
    return target


def _write_objects(target: AnyPath, pairs: Iterator[tuple[str, Content]]) -> AnyPath:
    first, head = next(pairs)
    stale = object_store.names_under(target)
    if first in stale:
        object_store.remove(target / first)
    for name, data in pairs:
        object_store.put(target / name, data)
        stale.discard(name)
    for name in stale - {first}:
        object_store.remove(target / name)
    object_store.put(target / first, head)
    return target


def remove_folder(place: AnyPath) -> None:
    """Removes a folder and all that is in it.

    Raises:
        InputError: it is in an object store and cannot be removed.
        OSError: it is on a disk and cannot be removed.
    """
    if not is_remote(place):
        shutil.rmtree(place)
        return
    with object_store.reached(place, "remove"):
        place.rmtree()


def replaced(place: str | os.PathLike) -> AnyPath:
    """Where `write_folder` keeps the previous folder for the moment between its two renames."""
    target = path(place) if is_remote(place) else Path(os.path.abspath(place))
    return target.with_name(f".{target.name}.replaced")


def resolved(place: AnyPath) -> AnyPath:
    """The path without links and `..`; an object store has neither, there it stays as it is."""
    return place if is_remote(place) else place.resolve()
