"""Files and folders that appear whole or not at all, on a disk or in a store (gs://, s3://).

On a disk they are written elsewhere, then renamed. An object appears only when all of it has
arrived, so it is written where it belongs; a folder of objects cannot be renamed, see
`write_folder`. What `path` returns has the methods of pathlib.Path wherever it is.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dimo_jax.common import object_store, temporaries
from dimo_jax.common.errors import InputError
from dimo_jax.common.object_store import STORES, AnyPath, Content, is_remote
from dimo_jax.common.outputs import (
    Foreign,
    anything,
    explained,
    file_target,
    followed,
    refuse_foreign,
    replaced,
    try_beside,
)
from dimo_jax.common.shown import shown

_MAX_NAME_BYTES = 255  # of a file, on every file system in use
# Called before anything is written: each raises where this process may not write any more.
guards: list[Callable[[], None]] = []


def path(place: str | os.PathLike) -> AnyPath:
    """Return a path from what a user typed: a flag or a field of a config.

    Args:
        place: a local path, gs://bucket/... or s3://bucket/...; what this function returned stays
            as it is.

    Returns:
        A pathlib.Path, or for an object store an etils.epath.Path.

    Raises:
        InputError: it is empty, another kind of address, no name that a disk takes, the package
            for it is missing, or the store cannot be reached.
    """
    if not os.fspath(place):
        raise InputError(
            "an empty path names nothing; give a file or folder (is a variable of the shell unset?)"
        )
    if isinstance(place, AnyPath) and is_remote(place):
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
    """Return a path from what a user typed, where only a disk will do.

    Args:
        place: a local path.

    Raises:
        InputError: it is in an object store.
    """
    if is_remote(place):
        raise InputError(f"{place} is not on a disk, as it must be here; copy it, or name another")
    return _named(place)


def _named(place: str | os.PathLike) -> Path:
    """Refuse a name that no disk takes: on one, pathlib raises instead of finding nothing."""
    try:
        longest = max(map(len, os.fsencode(place).split(b"/")))
    except UnicodeEncodeError:
        longest = -1
    if not 0 <= longest <= _MAX_NAME_BYTES or "\0" in os.fspath(place):
        raise InputError(f"{shown(place)} is no name that a disk takes; give another path")
    return Path(place)


def guard() -> None:
    """Raise where this process may not write any more."""
    for check in guards:
        check()


@contextlib.contextmanager
def writing(place: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file to write piece by piece; it takes its name when the block ends without error.

    Args:
        place: the file; one that exists is replaced, its folder is created.

    Raises:
        InputError: the path cannot be written.
        OSError: the disk is full.
    """
    found = path(place)
    if is_remote(found):
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            guard()
            object_store.put(found, iter(lambda: file.read(1 << 24), b""))
        return
    with explained(found):
        guard()
        target = file_target(found)
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporaries.file(target) as (file, temporary):
            yield file
            _sync(file)
            guard()
            os.replace(temporary, target)


def _sync(file: BinaryIO) -> None:
    file.flush()
    # A rename may reach the disk before the bytes; a power cut would then leave an empty file.
    os.fsync(file.fileno())


def check_writable(place: str | os.PathLike) -> None:
    """Try, before the work that makes a file, one where it or its folders will be, unnamed.

    Args:
        place: the file to come; in a store nothing is looked at.

    Raises:
        InputError: it cannot be written there.
        OSError: the disk is full.
    """
    found = path(place)
    if not is_remote(found):
        with explained(found):
            try_beside(file_target(found))


def check_folder(place: str | os.PathLike, foreign: Foreign) -> None:
    """Before the work that makes a folder: looks whether it can be written and replaced.

    Args:
        place: the folder to come.
        foreign: what of a folder that is there does not belong to its kind.

    Raises:
        InputError: it is a file, cannot be written there, or holds something else.
        OSError: the disk is full.
    """
    found = path(place)
    with explained(found):
        if not is_remote(found):
            try_beside(followed(found))
        refuse_foreign(found, foreign)


def write_file(place: str | os.PathLike, data: bytes) -> AnyPath:
    """Write a file atomically, creating its folder.

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
        guard()
        object_store.put(target, data)
        return target
    with writing(target) as file:
        file.write(data)
    return target


def create_file(place: AnyPath, data: bytes) -> bool:
    """Write a file unless there is one, of which others never see a part; its folder is created.

    Args:
        place: of files.path.
        data: its whole content.

    Returns:
        Whether it was written.

    Raises:
        InputError: it cannot be written.
    """
    if is_remote(place):
        return object_store.put_new(place, data)
    with explained(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporaries.file(place) as (file, temporary):
            file.write(data)
            _sync(file)
            try:
                os.link(temporary, place)
            except FileExistsError:
                return False
            except OSError:  # a disk without links
                with contextlib.suppress(FileExistsError), temporaries.new_file(place) as new:
                    new.write(data)
                    return True
                return False
    return True


def write_folder(
    place: str | os.PathLike,
    files: Mapping[str, Content] | Iterable[tuple[str, Content]],
    foreign: Foreign = anything,
) -> AnyPath:
    """Write a folder of files; a folder of that name is replaced whole.

    A folder cannot be renamed over one that is not empty, so the old one steps aside first. If the
    process is killed between the two renames, the old one is still complete at `replaced(path)`.

    In an object store the first file is the mark of the folder: the old one is removed before
    anything else is touched, and the new one written when all others are there. Where it is
    missing, the folder is not complete.

    Args:
        place: the folder.
        files: content by path inside the folder ("config.json", "tokenizer/config.json"), or such
            pairs, which need not all be in memory at once; a content is bytes or pieces of them.
        foreign: what of a folder that is there may not be deleted.

    Returns:
        The path.

    Raises:
        InputError: the path cannot be written, or holds something else.
        OSError: the disk is full.
    """
    pairs: Iterator[Any] = iter(files.items() if isinstance(files, Mapping) else files)
    found = path(place)
    guard()
    if is_remote(found):
        refuse_foreign(found, foreign)
        return _write_objects(found, pairs)
    with explained(found):
        target = followed(found)
        refuse_foreign(found, foreign)
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporaries.folder(target) as box:
            new = box / "new"
            new.mkdir()
            for name, data in pairs:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                with temporaries.new_file(new / name) as file:
                    file.writelines([data] if isinstance(data, bytes) else data)
                    _sync(file)
            guard()
            refuse_foreign(target, foreign)  # what came in the meantime
            _exchange(box, target)
    return found


def _exchange(box: Path, target: Path) -> None:
    """Give box/new its name; what had that name goes into the box, which is then removed."""
    old = replaced(target)
    if old.exists() and target.exists():
        os.rename(old, box / "left")  # by a process that was killed after its second rename
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(box / "new", target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    if old.exists():
        os.rename(old, box / "old")


def _write_objects(target: AnyPath, pairs: Iterator[tuple[str, Content]]) -> AnyPath:
    first, head = next(pairs)
    stale = object_store.names_under(target)
    if first in stale:
        object_store.remove(target / first)
    for name, data in pairs:
        guard()
        object_store.put(target / name, data)
        stale.discard(name)
    guard()
    for name in stale - {first}:
        object_store.remove(target / name)
    object_store.put(target / first, head)
    return target


def free_bytes(place: AnyPath) -> int | None:
    """Return what the disk of a file or folder to come has left; None in an object store."""
    if is_remote(place):
        return None
    absolute = place.absolute()
    there = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
    return shutil.disk_usage(there).free


def remove_folder(place: AnyPath) -> None:
    """Remove a folder of files, but the folder itself not where it is a link.

    Raises:
        InputError: it is in an object store and cannot be removed.
        OSError: it is on a disk and cannot be removed, or holds folders.
    """
    if is_remote(place):
        object_store.remove_all(place)
        return
    for inside in place.iterdir():
        inside.unlink()
    if not place.is_symlink():
        place.rmdir()


def resolved(place: AnyPath) -> AnyPath:
    """Return the path without links and `..`.

    An object store has neither, there it stays as it is.
    """
    return place if is_remote(place) else place.resolve()
