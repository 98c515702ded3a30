"""Temporary files and folders beside what they become, which nobody can have prepared.

They are called .NAME.<random>.writing and made exclusively: a link or a file that lies there is
never followed or overwritten. While its process lives, each is under flock; what a kill left is not
and is removed by the first process that writes into the same folder.
"""

import contextlib
import errno
import fcntl
import functools
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_NAME = re.compile(r"\..+\.[0-9a-f]{12}\.writing")
_LOCK = "lock"  # of a folder: the file in it that is under flock
# Where a disk has no flock, and for a folder whose process has not come to make its lock yet.
_OLD_SECONDS, _NEW_SECONDS = 24 * 3600.0, 60.0
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)


@contextlib.contextmanager
def file(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Make a new file in the folder of another, to be renamed; removed if it is not.

    Args:
        target: what it is to become; its folder is there.

    Yields:
        The file, open for writing, and its path.

    Raises:
        OSError: it cannot be made or written.
    """
    remove_leftovers(target.parent)
    while True:
        path = _sibling(target)
        with open(_create(path), "wb") as opened:
            if not _lock(opened.fileno(), path):
                continue  # another process took it for one left behind
            try:
                yield opened, path
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()
            return


@contextlib.contextmanager
def folder(target: Path) -> Iterator[Path]:
    """Make a new folder in the folder of another; removed at the end with all that is in it.

    Args:
        target: what is to come, of which something inside is renamed to it; its folder is there.

    Yields:
        The new folder, which holds the file "lock" already.

    Raises:
        OSError: it cannot be made.
    """
    remove_leftovers(target.parent)
    while True:
        path = _sibling(target)
        path.mkdir(0o700)
        with open(_create(path / _LOCK), "wb") as opened:
            if not _lock(opened.fileno(), path / _LOCK):
                continue
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
            return


def new_file(path: Path) -> BinaryIO:
    """Open a file that must not be there, not even as a link.

    Raises:
        OSError: it is there, or cannot be made.
    """
    return open(_create(path), "wb")


def is_temporary(name: str) -> bool:
    """Return whether a file or folder of that name is one of these, perhaps of a killed process."""
    return _NAME.fullmatch(name) is not None


def _sibling(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}.writing")


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def _lock(descriptor: int, path: Path) -> bool:
    """Return whether the file is this process's now; on a disk without flock it always is."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_ino == os.lstat(path).st_ino
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return True
        raise


# Once in a process: a folder of 50,000 pictures is not listed before each of them.
@functools.lru_cache(1024)
def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder."""
    with contextlib.suppress(OSError):
        for path in [Path(entry) for entry in os.scandir(folder) if is_temporary(entry.name)]:
            with contextlib.suppress(OSError):
                _remove_if_left(path)


def _remove_if_left(path: Path) -> None:
    found = path.lstat()
    age = time.time() - found.st_mtime
    if stat.S_ISREG(found.st_mode):
        if _is_left(path, age):
            path.unlink()
    elif stat.S_ISDIR(found.st_mode):
        lock = path / _LOCK
        if _is_left(lock, age) if os.path.lexists(lock) else age > _NEW_SECONDS:
            shutil.rmtree(path)


def _is_left(path: Path, age: float) -> bool:
    """Return whether no process that lives has the file under flock."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return age > _OLD_SECONDS
        raise
    finally:
        os.close(descriptor)
