"""Repositories of the Hugging Face Hub: hf://owner/repo[@revision][/path], fetched once.

Files lie in that library's own cache (HF_HOME), whose token, mirror and offline mode are taken too.
"""

import functools
import os
import re
import shlex
from pathlib import Path, PurePosixPath
from typing import Any

from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown

PREFIX = "hf://"
_ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<path>.*))?")


def is_hub(place: str | os.PathLike) -> bool:
    """Return whether it is an address of the Hub."""
    return os.fspath(place).startswith(PREFIX)


def repository(place: str | os.PathLike) -> str | None:
    """Return owner/repo of an address of the Hub; None for any other place."""
    match = _ADDRESS.fullmatch(os.fspath(place))
    return match and match["repo"]


def upload_command(folder: str | os.PathLike) -> str:
    """Return the command line that publishes a folder."""
    return f"hf upload OWNER/REPO {shlex.quote(os.fspath(folder))}"


def local(place: str | os.PathLike) -> str | os.PathLike:
    """Return where what a user typed lies on this machine: fetched, if it is an address of the Hub.

    Args:
        place: a path, which stays as it is, or hf://owner/repo[@revision][/folder or file].

    Returns:
        The path; of an address that of a snapshot in the cache.

    Raises:
        InputError: it is no such address, the package is missing, there is no such repository,
            revision or file, it may not be read, or the Hub cannot be reached.
    """
    return _fetched(os.fspath(place)) if is_hub(place) else place


@functools.cache
def _fetched(address: str) -> Path:
    match = _ADDRESS.fullmatch(address)
    inside = PurePosixPath((match and match["path"]) or "")
    if match is None or inside.is_absolute() or ".." in inside.parts:
        raise InputError(f"{address} is no address of the Hub; write hf://owner/repo@revision/path")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise InputError(
            f"hf:// needs the package huggingface_hub, which cannot be imported ({error}): "
            'pip install -e ".[hub]"'
        ) from error
    options: dict[str, Any] = {"revision": match["revision"]}
    if inside.parts:
        options["allow_patterns"] = [str(inside), f"{inside}/*"]
    try:
        folder = huggingface_hub.snapshot_download(match["repo"], **options)
    except errors.GatedRepoError as error:
        raise InputError(
            f"{address} is gated: accept its terms on the Hub, then log in with hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{address}: the repository has no revision {match['revision']}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"there is no repository {match['repo']} on the Hub that can be read here; check its "
            "name, and log in with hf auth login if it is private"
        ) from error
    except Exception as error:  # of the network, the disk and the library, all of their own types
        if isinstance(error, OSError) and error.errno is not None and error.filename:
            raise  # of this machine's disk
        raise InputError(
            f"cannot fetch {address} ({type(error).__name__}: {shown(str(error))}); check the "
            "network, or fetch it once where there is one and set HF_HOME"
        ) from error
    found = Path(folder) / inside
    if not found.exists():
        raise InputError(f"{address}: the repository has nothing at {inside}")
    return found
