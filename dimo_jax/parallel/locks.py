"""A folder that one run holds, and that all its processes share."""

import contextlib
from collections.abc import Iterable, Iterator

from dimo_jax.common import run_lock
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.parallel import distributed


@contextlib.contextmanager
def held(lock: AnyPath, what: str) -> Iterator[None]:
    """Hold a folder for all processes of this run while the block runs; each must call it.

    Args:
        lock: as run_lock.hold takes it.
        what: as the user typed it.

    Raises:
        InputError: on every process, if another run has it.
    """
    with contextlib.ExitStack() as stack:
        refusal = b""
        if distributed.is_lead():
            try:
                stack.enter_context(run_lock.hold(lock, what))
            except InputError as error:
                refusal = str(error).encode()
        # A collective of the devices would not wait as long.
        distributed.barrier("lock")
        if refusal := distributed.gather_bytes(refusal)[0]:
            raise InputError(refusal.decode())
        yield


def check_shared(name: str, paths: Iterable[AnyPath], folder: AnyPath, what: str) -> None:
    """Wait for all processes, then refuse a folder in which one of them lacks some of the files.

    Raises:
        InputError: on every process, with `what` as the flag or field that names the folder.
    """
    distributed.barrier(name)
    if not distributed.agree(all(path.exists() for path in paths)):
        raise InputError(
            f"not all processes see all of {folder}; {what} must be on a disk that all of them "
            "share"
        )
