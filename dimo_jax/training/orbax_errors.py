"""What Orbax raises, logs and leaves behind where it cannot read or write, made one sentence."""

import contextlib
import gc
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

from dimo_jax.common.outputs import FULL_DISK

# How long the reads that a failed restore leaves behind may take to end, and how long a folder must
# not change for the writes of a failed save to have ended.
SETTLE_SECONDS = 0.5
# How long a failed save may take to end; a process that exits waits for its threads.
SETTLE_SAVE_SECONDS = 5.0
# Orbax's coroutine that writes a part of an array.
NEVER_BEGUN = "async_serialize_from_host.<locals>.write_fragment"


class Unreadable(Exception):
    """A checkpoint, or this process's part of it, cannot be read; the message is the reason."""


def reading(read: Callable[[], Any], arrays: bool = False) -> Any:
    """read(), with whatever Orbax and TensorStore raise turned into Unreadable.

    Args:
        read: from a checkpoint.
        arrays: whether it reads arrays, several at once: those have to end after the first error.
    """
    with _one_error_only():
        try:
            return read()
        except Exception as error:  # ValueError, KeyError, FileNotFoundError, Exception, ...
            unreadable = Unreadable(_in_short(error))
        # Not inside `except`: the error's frames hold the reads that have to end first.
        gc.collect()
        if arrays:
            time.sleep(SETTLE_SECONDS)
            gc.collect()
    raise unreadable


def cause(error: BaseException) -> str:
    """Return why a save failed, in few words."""
    behind: BaseException | None = error
    # TensorStore's errors carry the system's only as text.
    texts = [os.strerror(number) for number in FULL_DISK]
    while behind is not None:
        if getattr(behind, "errno", None) in FULL_DISK or any(x in str(behind) for x in texts):
            return "the disk is full"
        behind = behind.__cause__ or behind.__context__
    return _in_short(error)


def settle(before: Collection[threading.Thread], folder: str) -> bool:
    """Wait for what a failed save left at work in its folder.

    Threads, and writes of TensorStore that nobody holds any more (Orbax 0.12 leaves its event loop
    at the first error): clean-up of that folder, or another save of the step, would meet them
    (OSError, "Directory not empty").

    Args:
        before: threads from before the save.
        folder: of the save; an object store is not looked at.

    Returns:
        Whether all threads have ended; a disk that hangs keeps them.
    """
    end = time.monotonic() + SETTLE_SAVE_SECONDS
    while left := _at_work(before):  # again: one that ends may have started another
        if time.monotonic() > end:
            return False
        for thread in left:
            # Not its own method, which Orbax lets raise the thread's error.
            threading.Thread.join(thread, max(end - time.monotonic(), 0))
    seen, quiet_from = None, time.monotonic()
    while "://" not in folder and time.monotonic() < min(end, quiet_from + SETTLE_SECONDS):
        found = [(place, names) for place, _, names in os.walk(folder)]
        if found != seen:
            seen, quiet_from = found, time.monotonic()
        time.sleep(0.02)
    return True


def _at_work(before: Collection[threading.Thread]) -> list[threading.Thread]:
    # The pool of Orbax's metadata store keeps its threads, idle, for the next save.
    return [
        x
        for x in threading.enumerate()
        if not (x in before or x.daemon or x.name.startswith("metadata_store"))
    ]


@contextlib.contextmanager
def quiet_failures() -> Iterator[None]:
    """Keep out of the process's output what Orbax prints of a failed save beside raising it.

    It logs the error in the background thread where it happens, at any time between the save and
    the wait for it; and as it leaves its event loop at the first error, as below, every array still
    under way prints that the loop is closed, and every one not yet begun that it was never awaited.
    Arrays of a failed restore, which ends as early, say whenever they are done that nobody waited
    for them.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    system: Any = sys  # the name `sys` is gone at the interpreter's exit
    before = system.unraisablehook

    def is_news(record: logging.LogRecord) -> bool:
        if record.name == "asyncio":
            return "tensorstore_spec" not in record.getMessage()
        return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)

    def without_closed_loops(unraisable: Any) -> None:
        if str(getattr(unraisable, "exc_value", "")) != "Event loop is closed":
            before(unraisable)

    for logger in loggers:
        logger.addFilter(is_news)
    system.unraisablehook = without_closed_loops
    # Stays: the last of them may be freed, and reported, long after the save.
    warnings.filterwarnings("ignore", f"coroutine '{NEVER_BEGUN}", RuntimeWarning)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_news)
        if system.unraisablehook is without_closed_loops:
            system.unraisablehook = before


def _in_short(error: BaseException) -> str:
    line = (str(error).splitlines() or [""])[0]
    if len(line) > 300:  # TensorStore's begin with long paths and end with the cause
        line = f"{line[:120]} ... {line[-180:]}"
    return f"{type(error).__name__}: {line}"


@contextlib.contextmanager
def _one_error_only() -> Iterator[None]:
    """Drop what a failed restore prints besides its error.

    Orbax 0.12 leaves its event loop at the first error, while TensorStore is still reading the
    other arrays. Each of those reads then prints a traceback of its own from another thread, such
    as 'Event loop is closed', and they would bury the sentence that counts.
    """
    hook, logger = sys.unraisablehook, logging.getLogger("asyncio")
    disabled = logger.disabled
    sys.unraisablehook, logger.disabled = (lambda _: None), True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited")
            yield
    finally:
        sys.unraisablehook, logger.disabled = hook, disabled
