"""A folder that one run holds, with all its processes."""

import contextlib
from collections.abc import Iterator

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
