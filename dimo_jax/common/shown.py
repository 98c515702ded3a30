"""Text from files in messages: what a terminal would take for a command never reaches it."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

_MOST = 120  # characters of a file's content in a message
_MOST_LISTED = 5


def shown(value: Any) -> str:
    """Give a value out of a file as a message may show it: short, in ASCII, without controls."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # an int of over 4300 digits; what contains itself
        text = f"<{type(value).__name__}>"
    return ascii(text if len(text) <= _MOST else f"{text[:_MOST]}...")[1:-1]


def quoted(value: Any) -> str:
    """Give a value out of a file as Python writes it: short, in ASCII, without controls."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


def listed(messages: Sequence[str]) -> str:
    """Return some messages in one sentence, the rest of them counted."""
    more = len(messages) - _MOST_LISTED
    return "; ".join(messages[:_MOST_LISTED]) + (f"; and {more} more" if more > 0 else "")


def printable(text: str) -> str:
    r"""Write out whatever a terminal does not show as a character, ESC as \x1b.

    That includes the marks that turn the direction of writing, and lone surrogates, which a strict
    stream refuses.
    """
    if text.isprintable():
        return text
    return "".join(x if x.isprintable() else ascii(x)[1:-1] for x in text)


def stop_printing() -> int:
    """Let go of stdout, whose reader has gone (| head); return the exit status for that.

    Python flushes stdout once more at its end, which would fail again.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
