"""The host's loop around a jitted step: resume, log, save, stop.

One loop for every stage. What a stage computes comes in as functions; what it leaves is a state,
its checkpoints and its lines in the metrics. Nothing but the state goes from one step to the next,
so a run that was killed and started again ends in the same bits as one that was not.

Several processes run the same loop in step: all save, all stop at the same step, one of them writes
the metrics.
"""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dimo_jax.common.errors import InputError, Interrupted
from dimo_jax.common.files import AnyPath
from dimo_jax.common.progress import Progress, format_seconds
from dimo_jax.parallel import distributed
from dimo_jax.training import traces
from dimo_jax.training.checkpoints import Checkpoints
from dimo_jax.training.metrics import Metrics
from dimo_jax.training.reader import Reader
from dimo_jax.training.signals import StopSignals

State = Any  # a pytree of arrays with an int32 scalar `step`
_SCHEDULE = "optimizer.schedule"  # how the names of those entries in `meta` end
Batch = Any


class Observer(NamedTuple):
    """What is drawn and measured in the course of a stage.

    Attributes:
        every_steps: interval; 0 is never.
        observe: (state, step) -> ({name: uint8 image}, {name: scalar}), called by all processes;
            must not keep the state. The scalars get a line of their own in the metrics.
        ranks: whether its scalar, the same on all processes, says how good the state is, the less
            the better: one of the best is saved then and there.
    """

    every_steps: int
    observe: Callable[[State, int], tuple[Mapping[str, np.ndarray], Mapping[str, float]]]
    ranks: bool = False


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
    observers: Sequence[Observer] = (),
    shown: Sequence[str] = (),
    abstract_state: State | None = None,
    max_skipped: int = 0,
    seed: int | None = None,
    trace: traces.Request | None = None,
) -> State:
    """Run a stage to its end, from its newest checkpoint if there is one.

    Args:
        name: the stage, in the progress line and the metrics.
        create_state: makes the state of step 0; jax.eval_shape asks it for shapes.
        step_fn: (state, batch) -> (state, {name: scalar}); jitted by the caller, may donate the
            state. Metrics are recorded as train/<name>. Among them may be `updates_skipped`, the
            number of updates that the step left out because a gradient was not finite: the sum
            over all steps is recorded as train/updates_skipped_total, and other metrics of such a
            step may be anything.
        batch_fn: the batch of step 0, 1, ...; a pure function, or resuming is not exact.
        num_steps: updates in all.
        checkpoints: of this stage alone.
        metrics: of the run.
        meta: JSON values that must be the same when the stage is resumed, such as the hash of the
            config and of the teacher; saved with every checkpoint.
        log_every_steps: the host waits for the device once in that many steps, one step late.
        save_every_steps: interval of checkpoints; the last step is always saved.
        observers: what is drawn and measured at intervals.
        shown: names of metrics for the progress line.
        abstract_state: shapes, dtypes and shardings of the state, where eval_shape of create_state
            cannot tell them.
        max_skipped: steps in a row that leave updates out and end the run; 0 is any number.
        seed: of the run, for that message.
        trace: of some of the steps.

    Returns:
        The state after num_steps; a finished stage is only read.

    Raises:
        InputError: if a metric is not finite (the checkpoints stay good), if too many updates in a
            row were left out, if the checkpoint is of other settings, or past num_steps, or
            cannot be read, or one cannot be written.
        Interrupted: after SIGTERM or SIGINT, once the step is finished and saved. A second
            signal acts at once. Among several processes, one signal stops all at the same step,
            with exit code 0.
        ProcessLost: another process of the run has ended.
    """
    # Over 80 lines, half of them the contract above: the order of what follows is in one place.
    with Progress(name, silent=not distributed.is_lead()) as progress:
        state, start = _open(
            name, create_state, abstract_state, checkpoints, metrics, meta, num_steps, progress
        )
        recorder = traces.Recorder(trace, start, progress.note)
        if start == num_steps:
            return state
        reader = Reader(
            name,
            start,
            num_steps,
            log_every_steps=log_every_steps,
            shown=shown,
            metrics=metrics,
            progress=progress,
            checkpoints=checkpoints,
            max_skipped=max_skipped,
            seed=seed,
            counters=checkpoints.counters(start) if start else {},
        )
        began = time.monotonic()
        with StopSignals() as signals, _saved_or_lost(name, checkpoints), recorder:
            for step in range(start, num_steps):
                with recorder.step(step, state):
                    state, values = step_fn(state, batch_fn(step))
                done = step + 1
                reader.add(done, values)
                stop = signals.stop()
                save = stop or done == num_steps or done % save_every_steps == 0
                due = [o for o in observers if o.every_steps and done % o.every_steps == 0]
                # The record up to here must stand, and be finite, before the state is saved;
                # the first step is read at once, to leave compilation out of the rate.
                reader.read(late=not (save or due or step == start))
                figures = _observe(due, state, done, metrics, name)
                if save or (figures and distributed.agree(checkpoints.is_best(figures))):
                    metrics.flush()
                    checkpoints.save(done, state, meta, reader.counters, figures)
                if stop:
                    break
        # Also a signal that came while the last step was being saved.
        if stop or signals.received is not None:
            raise _interrupted(name, signals, done, num_steps, checkpoints)
        progress.note(f"{num_steps} steps done, {format_seconds(time.monotonic() - began)}")
        return state


def changed_entries(
    saved: Mapping[str, Any], current: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Return what differs between two JSON objects, one line each: 'a/b: was 1, is 2'.

    Args:
        saved: from a checkpoint.
        current: what this run would write; tuples count as lists, as in JSON.
        prefix: put before each name.
    """
    saved, current = json.loads(json.dumps(saved)), json.loads(json.dumps(current))
    lines = []
    for name in [*saved, *(n for n in current if n not in saved)]:
        path = f"{prefix}{name}"
        if name not in saved:
            lines.append(f"{path}: was not there, is {current[name]!r}")
        elif name not in current:
            lines.append(f"{path}: was {saved[name]!r}, is gone")
        elif isinstance(saved[name], dict) and isinstance(current[name], dict):
            lines += changed_entries(saved[name], current[name], f"{path}/")
        elif saved[name] != current[name]:
            lines.append(f"{path}: was {saved[name]!r}, is {current[name]!r}")
    return lines


def check_settings(
    name: str, directory: AnyPath | str, saved: Mapping[str, Any], meta: Mapping[str, Any]
) -> None:
    """Compare what a checkpoint was made with to what is requested now.

    Another number of steps is no difference where the learning rate does not depend on it: such a
    stage can be made longer, and ends in the bits of one that was as long from the start.

    Args:
        name: the stage, for the message.
        directory: of its checkpoints.
        saved: meta of the newest.
        meta: JSON values as for `run_stage`.

    Raises:
        InputError: if one of them is another one now; each is listed.
    """
    length = f"{name}.num_steps"
    schedules = {x for n, x in saved.items() if n.startswith(name) and n.endswith(_SCHEDULE)}
    if length in meta and schedules == {"constant"}:
        saved = {**saved, length: meta[length]}
    changes = changed_entries(saved, meta)
    if not changes:
        return
    found = f"{name}: {directory} was started with other settings: {'; '.join(changes)}; "
    if len(changes) == 1 and changes[0].startswith(f"{length}:"):
        falling = " and ".join(sorted(schedules - {"constant"}))
        start = ", from this run's generator with --config.distill.generator.bundle=RUN/export"
        raise InputError(
            f"{found}with a {falling} schedule the learning rate of every step depends on the "
            "number of steps, so the steps already made are not those of such a run; use "
            f"{saved[length]} again, or another work directory"
            f"{start if name == 'distill' else ''} (a constant schedule can be made longer)"
        )
    raise InputError(f"{found}use those again, or another work directory")


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
    """Return the state to start from and its step; drops what the record has of later steps."""
    if checkpoints.latest() is None:
        metrics.rewind(name, -1)
        progress.note(f"starts; {num_steps} steps, the first one compiles")
        return create_state(), 0
    # First the settings: where they differ the tree may too, and they are the cause.
    check_settings(name, checkpoints.directory, checkpoints.meta(), meta)
    like = jax.eval_shape(create_state) if abstract_state is None else abstract_state
    state, _ = checkpoints.restore(like)
    for sentence in checkpoints.set_aside:
        progress.note(sentence)
    start = int(state.step)
    if start > num_steps:
        raise InputError(
            f"{name}: the checkpoint in {checkpoints.directory} is at step {start}, past the "
            f"{num_steps} steps requested; give at least {start}, or use another work directory"
        )
    if start == num_steps:
        progress.note(f"all {num_steps} steps are done already")
    else:
        metrics.rewind(name, start)
        progress.note(f"continues at step {start} of {num_steps}")
        if checkpoints.changed:
            progress.note(
                f"{'; '.join(checkpoints.changed)}: from here on the bits may differ from those of "
                "a run without this change"
            )
    return state, start


def _observe(
    due: Sequence[Observer], state: State, step: int, metrics: Metrics, name: str
) -> Mapping[str, float]:
    """Record what the observers draw and measure; return the figures that rank the state."""
    figures: Mapping[str, float] = {}
    for observer in due:
        images, values = observer.observe(state, step)
        metrics.images(step, images, name)
        if values:
            metrics.write(step, values, name)
        if observer.ranks:
            figures = values
    return figures


@contextlib.contextmanager
def _saved_or_lost(name: str, checkpoints: Checkpoints) -> Iterator[None]:
    """Wait at the end for the save under way, except with a process that will never come."""
    try:
        try:
            yield
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):  # the second signal, which acts at once
                checkpoints.abandon()
            elif not distributed.lost(error):
                checkpoints.wait()
            raise
        checkpoints.wait()
    except Exception as error:
        if not distributed.lost(error):
            raise
        checkpoints.abandon()
        where = f"{name}, checkpoints in {checkpoints.directory}"
        raise distributed.ProcessLost(distributed.describe_loss(where, error)) from error


def _interrupted(
    name: str, signals: StopSignals, done: int, num_steps: int, checkpoints: Checkpoints
) -> Interrupted:
    where = (
        f"at step {done} of {num_steps}, saved in {checkpoints.directory}; the same command "
        "continues there"
    )
    if signals.together:
        return Interrupted(
            f"{name}: all {jax.process_count()} processes stopped, as one was signalled, {where}", 0
        )
    received = signal.Signals(signals.received)
    return Interrupted(f"{name}: stopped by {received.name} {where}", 128 + received)
