"""One line of progress with rate and remaining time, for training and evaluation."""

import io
import shutil
import sys
import time
from collections.abc import Callable

from dimo_jax.common.shown import printable


def format_seconds(seconds: float | int) -> str:
    """'7 s', '3:07 min' or '2:05 h', rounded down."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class Progress:
    """Prints '<name> 120/300  40 %  12.3/s  ETA 14 s  <text>'.

    A terminal sees one line that is rewritten; a file or pipe gets a new line every
    `every_seconds`, and always the last one. A context manager: leaving it ends the line.

    Args:
        name: what is under way, e.g. the stage.
        stream: where to print; None prints on standard error.
        silent: print nothing, as all but one process of a run on many do.
        every_seconds: shortest time between two lines where the stream is no terminal.
        clock: seconds from an arbitrary start.
    """

    def __init__(
        self,
        name: str,
        *,
        stream: io.TextIOBase | None = None,
        silent: bool = False,
        every_seconds: float | int = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._name = name
        self._stream = sys.stderr if stream is None else stream
        self._silent = silent
        self._every_seconds = every_seconds
        self._clock = clock
        self._first: tuple[int, float] | None = None  # (done, time) of the first update
        self._printed_at = -float("inf")
        self._line_open = False

    def update(self, done: int, total: int, text: str = "") -> None:
        """Report that `done` of `total` units are finished.

        The rate counts from the first call, so call once with the starting value: work that an
        earlier run did, or compilation, is then left out.

        Args:
            done: units finished so far, those of earlier runs included.
            total: units in all.
            text: what else to show, e.g. "loss 1.23".
        """
        now = self._clock()
        if self._first is None:
            self._first = (done, now)
        terminal = self._stream.isatty()
        if self._silent or not (
            terminal or done >= total or now - self._printed_at >= self._every_seconds
        ):
            return
        self._printed_at = now
        line = f"{self._name} {done}/{total}  {100 * done // max(total, 1)} %"
        units, seconds = done - self._first[0], now - self._first[1]
        if units > 0 and seconds > 0:
            left = format_seconds((total - done) * seconds / units)
            line += f"  {units / seconds:.3g}/s  ETA {left}"
        if text:
            line += f"  {printable(text)}"
        if terminal:
            # A line longer than the terminal would wrap, and \r would no longer rewrite it whole.
            line = line[: shutil.get_terminal_size().columns - 1]
            self._stream.write(f"\r{line}\x1b[K")
            self._line_open = True
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def note(self, text: str) -> None:
        """Print '<name>: <text>' on a line of its own."""
        self.close()
        if not self._silent:
            self._stream.write(f"{self._name}: {printable(text)}\n")
            self._stream.flush()

    def close(self) -> None:
        """End the line that is being rewritten, if there is one."""
        if self._line_open:
            self._stream.write("\n")
            self._stream.flush()
            self._line_open = False

    def __enter__(self) -> "Progress":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the line."""
        self.close()
