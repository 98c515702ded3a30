"""Objects in a store (gs://, s3://), as far as the methods of a path do not reach.

An object appears only when all of it has arrived, so it is written where it belongs.
"""

import contextlib
import functools
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Otherwise etils takes TensorFlow for gs:// where it is installed: its errors are no OSErrors, and
# Orbax needs google-cloud-storage there in any case, which comes with gcsfs.
os.environ.setdefault("EPATH_USE_TF", "false")

import fsspec.config  # noqa: E402
from etils import epath  # noqa: E402

from dimo_jax.common.errors import InputError  # noqa: E402

if TYPE_CHECKING:
    AnyPath = Path  # whose methods epath.Path has too, though it is no subclass
else:
    AnyPath = Path | epath.Path
# Of a file: all of it, or its pieces one after the other.
Content = bytes | Iterable[bytes]
# Kind of address -> what reads and writes there.
STORES = {"gs": "gcsfs", "s3": "s3fs"}


def is_remote(place: str | os.PathLike) -> bool:
    """Return whether it is in an object store."""
    return "://" in os.fspath(place)


def open_path(place: str | os.PathLike, kind: str) -> AnyPath:
    """Return a path in a store, which answers.

    Args:
        place: gs://bucket/... or s3://bucket/...
        kind: a key of STORES.

    Raises:
        InputError: the package for it is missing, or the store cannot be reached.
    """
    open_store(kind)
    found: Any = epath.Path(os.fspath(place))
    with reached(found, "reach"):
        found.exists()
    return found


@functools.cache
def open_store(kind: str) -> None:
    """Make ready what reads and writes gs:// or s3://."""
    package = STORES[kind]
    try:
        fsspec.get_filesystem_class(kind)
    except ImportError as error:
        raise InputError(
            f"{kind}:// needs the package {package}, which cannot be imported ({error}): "
            f'pip install -e ".[{kind}]"'
        ) from error
    # gcsfs prints a traceback of what it raises as well, and warns at every call where it may not
    # ask what kind of bucket it is.
    logging.getLogger(package).setLevel(logging.CRITICAL)
    # fsspec keeps lists of folders for ever, in which a file that another process wrote is missing.
    fsspec.config.conf.setdefault(kind, {}).setdefault("use_listings_cache", False)


@contextlib.contextmanager
def reached(place: AnyPath, verb: str) -> Iterator[None]:
    """Turn whatever a store raises into one sentence: its libraries have no common error."""
    try:
        yield
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"cannot {verb} {place} ({type(error).__name__}: {said}); check the address and your "
            "credentials"
        ) from error


def _store(place: AnyPath) -> tuple[Any, str]:
    """Return the file system of a remote path, and the path's name there."""
    return fsspec.core.url_to_fs(str(place))


def put(place: AnyPath, data: Content) -> None:
    """Write one object. Not by open(): leaving its block on an error keeps what was written."""
    store, name = _store(place)
    if isinstance(data, bytes):
        with reached(place, "write"):
            store.pipe_file(name, data)
        return
    with tempfile.NamedTemporaryFile() as file:
        file.writelines(data)
        file.flush()
        with reached(place, "write"):
            store.put_file(file.name, name)


def put_new(place: AnyPath, data: bytes) -> bool:
    """Write one object unless there is one; whether it was written. The store decides."""
    store, name = _store(place)
    with reached(place, "write"):
        try:
            store.pipe_file(name, data, mode="create")
        except FileExistsError:
            # Also where an answer was lost and the library repeated the request.
            return read_start(place, len(data) + 1) == data
    return True


def read_start(place: AnyPath, most: int) -> bytes | None:
    """Read the first bytes of a file or object; None where there is none."""
    try:
        if not is_remote(place):
            with open(place, "rb") as file:
                return file.read(most)
        store, name = _store(place)
        return store.cat_file(name)[:most]
    except FileNotFoundError:
        return None


def names_under(place: AnyPath) -> set[str]:
    """Names of all objects under a remote path, relative to it."""
    store, name = _store(place)
    start = f"{name}/"
    with reached(place, "read"):
        return {x.removeprefix(start) for x in store.find(name) if x.startswith(start)} - {""}


def remove(place: AnyPath) -> None:
    """Remove one object, if it is there."""
    with reached(place, "remove"):
        place.unlink(missing_ok=True)


def remove_all(place: AnyPath) -> None:
    """Remove all objects under a remote path."""
    with reached(place, "remove"):
        epath.Path(place).rmtree()
