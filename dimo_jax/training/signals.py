"""Signals that ask a run to stop: alone by this process's word, with others by everybody's."""

import os
import signal
import threading
import time
from typing import Any

from dimo_jax.parallel import distributed

# A signal that follows another within that time is taken for its repetition: SLURM's scancel sends
# a job's steps and its batch script one each, and both reach the program.
REPETITION_SECONDS = 1.0


class StopSignals:
    """Notes the first SIGTERM or SIGINT instead of dying of it; a later second acts as always.

    Among several processes JAX's runtime has SIGTERM, tells the others, and finds a step at which
    all of them can stop; Python must not take the signal away from it. SIGINT then is passed on
    to it as SIGTERM.

    Attributes:
        received: the signal that this process alone obeys, None where there was none.
        together: whether all processes stop.
    """

    def __init__(self):
        self.received: int | None = None
        self.together = False
        self._noted_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        """Install the handlers."""
        # Python allows handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            many = distributed.started()
            for number in (signal.SIGINT,) if many else (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._pass_on if many else self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Put back the handlers that were there."""
        for number, handler in self._before.items():
            # None: the handler was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def stop(self) -> bool:
        """Return whether to stop after this step; all processes call it once after each."""
        self.together = self.together or distributed.stop_together()
        return self.together or self.received is not None

    def _note(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._noted_at = number, now
        elif now - self._noted_at > REPETITION_SECONDS:
            self.__exit__()
            os.kill(os.getpid(), number)

    def _pass_on(self, _number: int, _frame: object) -> None:
        self.__exit__()
        os.kill(os.getpid(), signal.SIGTERM)
