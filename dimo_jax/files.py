"""Files and folders that appear whole or not at all: written elsewhere, then renamed."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from dimo_jax.errors import InputError

# Of a file: all of it, or its pieces one after the other.
Content = bytes | Iterable[bytes]
# The commands report a full disk in their own words (dimo_jax/cli.py); it is no fault of the path.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


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
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write to, piece by piece, that takes its name when the block ends without error.

    Args:
        path: the file; one that exists is replaced, its folder is created.

    Raises:
        InputError: the path cannot be written.
        OSError: the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.writing")
    with _explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _synced(temporary) as file:
                yield file
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_file(path: str | os.PathLike, data: bytes) -> Path:
    """Writes a file atomically, creating its folder.

    Args:
        path: the file; one that exists is replaced.
        data: its whole content.

    Returns:
        The path.

    Raises:
        InputError: the path cannot be written.
        OSError: the disk is full.
    """
    with writing(path) as file:
        file.write(data)
    return Path(path)


def write_folder(
    path: str | os.PathLike, files: Mapping[str, Content] | Iterable[tuple[str, Content]]
) -> Path:
    """Writes a folder of files; a folder of that name is replaced whole.

    A folder cannot be renamed over one that is not empty, so the old one steps aside first. If the
    process is killed between the two renames, the old one is still complete at `replaced(path)`.

    Args:
        path: the folder.
        files: content by path inside the folder ("config.json", "tokenizer/config.json"), or such
            pairs, which need not all be in memory at once; a content is bytes or pieces of them.

    Returns:
        The path.

    Raises:
        InputError: the path cannot be written.
        OSError: the disk is full.
    """
    path = Path(os.path.abspath(path))  # "." has no name that a sibling could be called after
    temporary, old = path.with_name(f".{path.name}.writing"), replaced(path)
    with _explained(path):
        try:
            # Left by an earlier process that was killed while it wrote.
            shutil.rmtree(temporary, ignore_errors=True)
            for name, data in files.items() if isinstance(files, Mapping) else files:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                with _synced(temporary / name) as file:
                    file.writelines([data] if isinstance(data, bytes) else data)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.rename(path, old)
            os.rename(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists() and not path.exists():
                os.rename(old, path)
            raise
    shutil.rmtree(old, ignore_errors=True)
    return path


def replaced(path: str | os.PathLike) -> Path:
    """Where `write_folder` keeps the previous folder for the moment between its two renames."""
    path = Path(os.path.abspath(path))
    return path.with_name(f".{path.name}.replaced")
