"""The host's loop around a jitted step: resume, log, save, stop.

One loop for every stage. What a stage computes comes in as functions; what it leaves is a state,
its checkpoints and its lines in the metrics. Nothing but the state goes from one step to the next,
so a run that was killed and started again ends in the same bits as one that was not.
"""

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dimo_jax.errors import InputError, Interrupted
from dimo_jax.training.checkpoints import Checkpoints, changed_entries
from dimo_jax.training.metrics import Metrics
from dimo_jax.training.progress import Progress, format_seconds

State = Any  # a pytree of arrays with an int32 scalar `step`
Batch = Any


def run_stage(
    name: str,
    create_state: Callable[[], State],
    step_fn: Callable[[State, Batch], tuple[State, Mapping[str, Any]]],
    batch_fn: Callable[[int], Batch],
    num_steps: int,
    *,
    checkpoints: Checkpoints,
    metrics: Metrics,
    meta: Mapping[str, Any],
    log_every_steps: int,
    save_every_steps: int,
    images_every_steps: int = 0,
    on_images: Callable[[State, int], Mapping[str, np.ndarray]] | None = None,
    shown: Sequence[str] = (),
    abstract_state: State | None = None,
) -> State:
    """Runs a stage to its end, from its newest checkpoint if there is one.

    Args:
        name: the stage, in the progress line and the metrics.
        create_state: makes the state of step 0; jax.eval_shape asks it for shapes.
        step_fn: (state, batch) -> (state, {name: scalar}); jitted by the caller, may donate the
            state. Metrics are recorded as train/<name>.
        batch_fn: the batch of step 0, 1, ...; a pure function, or resuming is not exact.
        num_steps: updates in all.
        checkpoints: of this stage alone.
        metrics: of the run.
        meta: JSON values that must be the same when the stage is resumed, such as the hash of the
            config and of the teacher; saved with every checkpoint.
        log_every_steps: the host waits for the device once in that many steps, one step late.
        save_every_steps: interval of checkpoints; the last step is always saved.
        images_every_steps: interval of on_images; 0 is never.
        on_images: (state, step) -> {name: uint8 image}; must not keep the state.
        shown: names of metrics for the progress line.
        abstract_state: shapes, dtypes and shardings of the state, where eval_shape of create_state
            cannot tell them.

    Returns:
        The state after num_steps; a finished stage is only read.

    Raises:
        InputError: if a metric is not finite (the checkpoints stay good), if the checkpoint is
            of other settings, or past num_steps, or cannot be read.
        Interrupted: after SIGTERM or SIGINT, once the step is finished and saved. A second
            signal acts at once.
    """
    with Progress(name, silent=jax.process_index() != 0) as progress:
        state, start = _open(
            name, create_state, abstract_state, checkpoints, metrics, meta, num_steps, progress
        )
        if start == num_steps:
            return state
        reader = _Reader(
            name, start, num_steps, log_every_steps, shown, metrics, progress, checkpoints.directory
        )
        began = time.monotonic()
        with _Signals() as signals:
            try:
                for step in range(start, num_steps):
                    state, values = step_fn(state, batch_fn(step))
                    done = step + 1
                    reader.add(done, values)
                    stop = signals.received is not None
                    save = stop or done == num_steps or done % save_every_steps == 0
                    draw = on_images and images_every_steps and done % images_every_steps == 0
                    # The record up to here must stand, and be finite, before the state is saved;
                    # the first step is read at once, to leave compilation out of the rate.
                    reader.read(late=not (save or draw or step == start))
                    if draw:
                        metrics.images(done, on_images(state, done), name)
                    if save:
                        checkpoints.save(done, state, meta)
                    if stop:
                        break
            finally:
                checkpoints.wait()
        if signals.received is not None:
            raise Interrupted(
                f"{name}: stopped by {signal.Signals(signals.received).name} at step {done} of "
                f"{num_steps}, saved in {checkpoints.directory}; the same command continues there",
                128 + signals.received,
            )
        progress.note(f"{num_steps} steps done, {format_seconds(time.monotonic() - began)}")
        return state


def check_settings(name: str, checkpoints: Checkpoints, meta: Mapping[str, Any]) -> None:
    """Compares what the newest checkpoint was made with to what is asked for now.

    Args:
        name: the stage, for the message.
        checkpoints: of this stage; at least one.
        meta: JSON values as for `run_stage`.

    Raises:
        InputError: if one of them is another one now; each is listed.
    """
    changes = changed_entries(checkpoints.meta(), meta)
    if changes:
        raise InputError(
            f"{name}: {checkpoints.directory} was started with other settings: "
            f"{'; '.join(changes)}; use those again, or another work directory"
        )


def _open(
    name: str,
    create_state: Callable[[], State],
    abstract_state: State | None,
    checkpoints: Checkpoints,
    metrics: Metrics,
    meta: Mapping[str, Any],
    num_steps: int,
    progress: Progress,
) -> tuple[State, int]:
    """The state to start from and its step; drops what the record has of later steps."""
    if checkpoints.latest() is None:
        metrics.rewind(name, -1)
        progress.note(f"starts; {num_steps} steps, the first one compiles")
        return create_state(), 0
    # First the settings: where they differ the tree may too, and they are the cause.
    check_settings(name, checkpoints, meta)
    like = jax.eval_shape(create_state) if abstract_state is None else abstract_state
    state, _ = checkpoints.restore(like)
    start = int(state.step)
    if start > num_steps:
        raise InputError(
            f"{name}: the checkpoint in {checkpoints.directory} is at step {start}, past the "
            f"{num_steps} steps asked for; ask for at least {start}, or use another work directory"
        )
    if start == num_steps:
        progress.note(f"all {num_steps} steps are done already")
    else:
        metrics.rewind(name, start)
        progress.note(f"continues at step {start} of {num_steps}")
    return state, start


class _Reader:
    """Holds the metrics of steps that the device may not have finished yet, and reads them late."""

    def __init__(
        self,
        name: str,
        start: int,
        num_steps: int,
        log_every_steps: int,
        shown: Sequence[str],
        metrics: Metrics,
        progress: Progress,
        directory: str,
    ):
        self._name, self._num_steps, self._directory = name, num_steps, directory
        self._log_every_steps, self._shown = log_every_steps, shown
        self._metrics, self._progress = metrics, progress
        self._pending: list[tuple[int, Mapping[str, Any]]] = []
        self._last = (start, time.monotonic())  # step and time of the last read

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Takes the metrics of the step that was dispatched last, without waiting for it."""
        self._pending.append((step, values))

    def read(self, late: bool) -> None:
        """Checks what is pending, and records the lines that are due.

        Args:
            late: leave the newest step alone, and wait for the others only where a line is due:
                the device then always has a step to work on. False reads everything now.
        """
        ready = self._pending[:-1] if late else self._pending
        if late and not any(self._due(step) for step, _ in ready):
            return
        self._pending = self._pending[len(ready) :]
        host = jax.device_get([values for _, values in ready])  # waits for the device
        now, newest = time.monotonic(), ready[-1][0]
        rate = (newest - self._last[0]) / max(now - self._last[1], 1e-9)
        self._last = (newest, now)
        for (step, _), values in zip(ready, host, strict=True):
            self._check(step, values)
            if self._due(step):
                recorded = {f"train/{key}": value for key, value in values.items()}
                self._metrics.write(step, recorded | {"time/steps_per_second": rate}, self._name)
        text = "  ".join(f"{key} {float(host[-1][key]):.4g}" for key in self._shown)
        self._progress.update(newest, self._num_steps, text)

    def _due(self, step: int) -> bool:
        return step % self._log_every_steps == 0 or step == self._num_steps

    def _check(self, step: int, values: Mapping[str, Any]) -> None:
        bad = [f"{key} {float(x)}" for key, x in values.items() if not np.isfinite(x)]
        if bad:
            raise InputError(
                f"{self._name}: not finite at step {step} of {self._num_steps}: {', '.join(bad)}; "
                f"the checkpoints in {self._directory} are from before; try a lower learning "
                "rate, a longer warm-up or stronger clipping, in another work directory"
            )


class _Signals:
    """Notes the first SIGTERM or SIGINT instead of dying of it; the second acts as always."""

    def __init__(self):
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        # Python allows handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: the handler was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, _frame: object) -> None:
        self.received = number
        self.__exit__()
