"""Batches made in a thread of their own while the device computes, a few steps ahead."""

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

Batch = TypeVar("Batch")
# One that waits for its step, and one that is being made.
DEPTH = 2


@contextlib.contextmanager
def ahead(
    batch_of: Callable[[int], Batch], num_steps: int, depth: int = DEPTH
) -> Iterator[Callable[[int], Batch]]:
    """Give what returns the same batches, made before they are requested.

    When the context ends its thread ends, and what it made ahead is dropped.

    Args:
        batch_of: number of the step -> batch, a pure function. It runs in one thread, and must
            launch nothing that several processes take part in: those have to come in the order of
            all processes.
        num_steps: there are the steps 0 .. num_steps - 1; they are requested in their order, from
            any one on.
        depth: batches that are made ahead.

    Yields:
        number of the step -> batch. It raises what batch_of raised for that step, as that step is
        requested.
    """
    waiting: dict[int, concurrent.futures.Future[Batch]] = {}
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="batches")

    def next_of(number: int) -> Batch:
        for step in range(number, min(number + 1 + depth, num_steps)):
            if step not in waiting:
                waiting[step] = pool.submit(batch_of, step)
        return waiting.pop(number).result()

    try:
        yield next_of
    finally:
        pool.shutdown(cancel_futures=True)
