"""Traces of a few steps, which xprof and TensorBoard's profile plug-in read.

Every process records itself, into `<folder>/plugins/profile/<name>/process_<index>.xplane.pb`:
where one waits for another both are seen, and the viewers show all files of a name as one session.
clu.periodic_actions.Profile (clu 0.0.12) is not used: it does not wait for the device, so that a
trace has the steps before and lacks the last ones, and leaves a trace open where the run ends.
"""

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dimo_jax.common import files
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath


class Window(NamedTuple):
    """Which steps are recorded.

    Attributes:
        first: the number of the first, from 0.
        num_steps: how many.
    """

    first: int
    num_steps: int

    @property
    def end(self) -> int:
        """Number of the first step that is not recorded any more."""
        return self.first + self.num_steps


class Request(NamedTuple):
    """A trace to be made.

    Attributes:
        window: the steps.
        folder: what the viewers are given.
        prefix: of the session's name there, before the number of the first step.
    """

    window: Window
    folder: AnyPath
    prefix: str

    @property
    def session(self) -> AnyPath:
        """Where the files of all processes lie."""
        return self.folder / "plugins" / "profile" / f"{self.prefix}_step_{self.window.first}"


def window(text: str) -> Window:
    """Read the value of --profile.

    Args:
        text: STEP:STEPS.

    Raises:
        InputError: it is something else, or records nothing.
    """
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    if found is None or int(found[2]) == 0:
        raise InputError(
            f"--profile={text} is not STEP:STEPS, the first step to record, from 0, and how many, "
            "at least 1; for example --profile=20:5"
        )
    return Window(int(found[1]), int(found[2]))


class Recorder:
    """Records the steps of a request, once they are reached in order.

    Args:
        request: None records nothing.
        start: the number of the first step of this loop; after that of the request it is too late.
        note: takes a line that says where the trace is, or why there is none.
    """

    def __init__(self, request: Request | None, start: int, note: Callable[[str], None]):
        if request is not None and start > request.window.first:
            note(f"no trace: step {request.window.first} was made before this start")
            request = None
        self._request, self._note = request, note
        self._scratch: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> "Recorder":
        """Begin a loop."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Keep what an early end leaves of a trace, but not what an error does."""
        self._stop(keep=kind is None)

    @contextlib.contextmanager
    def step(self, number: int, state: Any) -> Iterator[None]:
        """Surround one step.

        Args:
            number: from 0.
            state: of the step before it, which is waited for where the trace begins or ends.
        """
        if self._request is None:
            yield
            return
        window = self._request.window
        if number in (window.first, window.end):
            jax.block_until_ready(state)
        if number == window.end:
            self._stop(keep=True)
        if number == window.first:
            self._scratch = tempfile.TemporaryDirectory()
            options = jax.profiler.ProfileOptions()
            # Python's calls would fill the host's part, whose length is limited.
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._scratch.name, profiler_options=options)
        if self._scratch is None:
            yield
            return
        # The viewers' tables by step go by these.
        with jax.profiler.StepTraceAnnotation(self._request.prefix, step_num=number):
            yield

    def _stop(self, keep: bool) -> None:
        """End a trace, if one runs."""
        if self._request is None or self._scratch is None:
            return
        with self._scratch as folder:
            self._scratch = None
            jax.profiler.stop_trace()
            if not keep:
                return
            (found,) = Path(folder).rglob("*.xplane.pb")
            name = f"process_{jax.process_index()}.xplane.pb"
            # Not where JAX would write it: a store may be the place, and the name is one on all.
            target = files.write_file(self._request.session / name, found.read_bytes())
        self._note(f"trace of the steps from {self._request.window.first} on: {target}")
