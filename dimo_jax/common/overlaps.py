"""An output must not be one of the inputs, hold one, or lie in one."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from dimo_jax.common.errors import InputError
from dimo_jax.common.object_store import is_remote


def refuse(
    output: str | os.PathLike,
    inputs: Iterable[str | os.PathLike | None],
    may_hold: bool = False,
    flag: str = "--output",
) -> None:
    """Compare the places where the files really are, links resolved.

    Args:
        output: the file or folder to come.
        inputs: files and folders that are read; None and what is not there are passed over.
        may_hold: whether the output may be a folder around an input, as it may where nothing in it
            is ever removed.
        flag: that the output was given by.

    Raises:
        InputError: writing would touch an input.
    """
    target = _real(output)
    for given in inputs:
        if given is None or not (is_remote(given) or os.path.exists(given)):
            continue
        source = _real(given)
        if target == source:
            how = "is the input itself"
        elif source in target.parents:
            how = f"lies in the input {given}"
        elif target in source.parents and not may_hold:
            how = f"holds the input {given}"
        else:
            continue
        raise InputError(f"{flag}={output} {how}, which writing would change; name another place")


def _real(place: str | os.PathLike) -> PurePosixPath | Path:
    if is_remote(place):
        return PurePosixPath(os.fspath(place))
    return Path(os.path.realpath(os.path.expanduser(place)))
