"""What Orbax raises, logs and leaves behind where it cannot read or write, made one sentence."""

import contextlib
import gc
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from dimo_jax.files import FULL_DISK

# How long the reads that a failed restore leaves behind may take to end.
SETTLE_SECONDS = 0.5


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
    """Why a save failed, in few words."""
    behind: BaseException | None = error
    # TensorStore's errors carry the system's only as text.
    texts = [os.strerror(number) for number in FULL_DISK]
    while behind is not None:
        if getattr(behind, "errno", None) in FULL_DISK or any(x in str(behind) for x in texts):
            return "the disk is full"
        behind = behind.__cause__ or behind.__context__
    return _in_short(error)


def hush() -> None:
    """Keeps out of the process's output what Orbax prints of a failed save beside raising it.

    It logs the error in the background thread where it happens; and as it leaves its event loop at
    the first error, as below, every array still under way prints that the loop is closed.
    """
    logging.getLogger("absl").addFilter(_is_news)
    if not isinstance(sys.unraisablehook, _WithoutClosedLoops):
        sys.unraisablehook = _WithoutClosedLoops(sys.unraisablehook)


def _is_news(record: logging.LogRecord) -> bool:
    return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)


class _WithoutClosedLoops:
    """A hook for exceptions that nobody can catch, which leaves out those of a closed loop."""

    def __init__(self, before: Callable[[Any], None]):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        if str(getattr(unraisable, "exc_value", "")) != "Event loop is closed":
            self._before(unraisable)


def _in_short(error: BaseException) -> str:
    line = (str(error).splitlines() or [""])[0]
    if len(line) > 300:  # TensorStore's begin with long paths and end with the cause
        line = f"{line[:120]} ... {line[-180:]}"
    return f"{type(error).__name__}: {line}"


@contextlib.contextmanager
def _one_error_only() -> Iterator[None]:
    """Drops what a failed restore prints besides its error.

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
