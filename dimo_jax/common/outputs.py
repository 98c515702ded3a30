"""What may be written where: the same for all writers, on a disk and in an object store.

A link is followed, and stays; one that leads nowhere is refused, since it is more often a disk that
is not mounted than a wish. A file that the user named is replaced if it is a regular one. A folder
is replaced only if its writer knows everything in it as its own.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from dimo_jax.common.errors import InputError
from dimo_jax.common.object_store import AnyPath, is_remote

# The commands report a full disk in their own words (dimo_jax/cli.py); it is no fault of the path.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# A folder that exists -> what in it is not of the kind that would replace it; None: nothing.
Foreign = Callable[[AnyPath], str | None]


@contextlib.contextmanager
def explained(path: AnyPath) -> Iterator[None]:
    """Turn an error of the system, but for a full disk, into a sentence about the path."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def followed(place: str | os.PathLike) -> Path:
    """Return the path on a disk without links and `..`: where it is really written.

    Args:
        place: a local path, which need not exist.

    Raises:
        InputError: it is, or lies in, a link that leads nowhere; or it is the root.
    """
    given = Path(place)
    there = next((part for part in (given, *given.parents) if os.path.lexists(part)), given)
    if there.is_symlink() and not (os.path.exists(there) or replaced(there).is_dir()):
        raise InputError(
            f"{there} is a link to {os.path.realpath(there)}, which is not there; mount or make "
            "that, or name another place"
        )
    target = Path(os.path.realpath(given))
    if not target.name:
        raise InputError(f"{place} names nothing that could be written; give a file or a folder")
    return target


def file_target(place: AnyPath) -> Path:
    """`followed`, of a file that may be replaced if it is there."""
    target = followed(place)
    if target.exists() and not target.is_file():
        # os.replace would put a file in the place of /dev/null.
        what = "a folder" if target.is_dir() else "no regular file"
        raise InputError(f"cannot write {place}: it is {what}; name a file")
    return target


def try_beside(target: Path) -> None:
    """Make a file where the target or its folders will be, without a name.

    Raises:
        OSError: that cannot be done.
    """
    there = next(folder for folder in target.parents if folder.exists())
    with tempfile.TemporaryFile(dir=there):
        pass


def anything(folder: AnyPath) -> str | None:
    """Return the first name in a folder: `Foreign` where only an empty folder may be replaced."""
    return min((x.name for x in folder.iterdir()), default=None)


def refuse_foreign(place: AnyPath, foreign: Foreign) -> None:
    """Refuse to replace a folder that is not wholly its writer's.

    Raises:
        InputError: it is a file, or holds something else.
    """
    if not is_remote(place):
        # There only a killed process of this program may have left something.
        old = replaced(place)
        if os.path.lexists(old) and (old.is_symlink() or not old.is_dir() or foreign(old)):
            raise InputError(f"{old} is in the way; move it elsewhere")
    if not place.exists():
        return
    if not place.is_dir():
        raise InputError(f"{place} is a file; name a folder")
    if not is_remote(place) and os.path.ismount(place):
        raise InputError(f"{place} is where a disk is mounted; name a folder in it")
    if what := foreign(place):
        raise InputError(f"{place} holds {what}, which writing would delete; name a new folder")


def replaced(place: AnyPath) -> AnyPath:
    """Return where `write_folder` keeps the previous folder between its two renames."""
    target = place if is_remote(place) else Path(os.path.realpath(place))
    return target.with_name(f".{target.name}.replaced")
