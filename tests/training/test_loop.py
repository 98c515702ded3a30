import contextlib
import math
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from dimo_jax.common.errors import InputError, Interrupted
from dimo_jax.training import metrics as metrics_lib
from dimo_jax.training import signals
from dimo_jax.training.checkpoints import Checkpoints
from dimo_jax.training.loop import Observer, changed_entries
from tests.helpers.stage_run import Run, State, add, batch_of, create_state, line


@pytest.fixture
def run(tmp_path, capsys):
    return Run(tmp_path, capsys)


def test_runs_logs_and_saves_at_intervals_and_at_the_end(run):
    state = run(num_steps=7, shown=("total",))
    assert int(state.step) == 7 and float(state.total) == 28
    assert run.saved_steps() == [3, 6, 7]
    assert run.record() == [line(2), line(4), line(6), line(7)]
    assert all(x["time/steps_per_second"] > 0 for x in metrics_lib.read(run.workdir))
    out = run.capsys.readouterr().err
    assert "stage 7/7  100 %" in out and "total 28" in out


def test_a_finished_stage_is_only_read(run):
    run()

    def forbidden(*_):
        raise AssertionError("a finished stage ran a step")

    before = (run.workdir / "metrics.jsonl").read_bytes()
    state = run(step_fn=forbidden, batch_fn=forbidden)
    assert float(state.total) == 21
    assert (run.workdir / "metrics.jsonl").read_bytes() == before
    assert "done already" in run.capsys.readouterr().err


def test_an_exception_loses_nothing_that_was_saved(run):
    def broken_batch(step):
        if step == 5:
            raise RuntimeError("the data set is gone")
        return batch_of(step)

    with pytest.raises(RuntimeError, match="gone"):
        run(num_steps=8, batch_fn=broken_batch)
    assert run.saved_steps() == [3]
    seen = []
    state = run(num_steps=8, batch_fn=lambda step: (seen.append(step), batch_of(step))[1])
    assert seen == [3, 4, 5, 6, 7]
    assert float(state.total) == 36
    assert run.record() == [line(2), line(4), line(6), line(8)]
    assert "continues at step 3 of 8" in run.capsys.readouterr().err


class Late:
    """A metric that notes when it is read, as a device array that is not ready would block."""

    shape, ndim, dtype = (), 0, np.dtype(np.float32)

    def __init__(self, events, step):
        self.events, self.step = events, step

    def __array__(self, dtype=None, copy=None):
        self.events.append(f"read {self.step}")
        return np.array(float(self.step), np.float32)


def test_metrics_are_read_one_step_late(run):
    events = []

    def step_fn(state, batch):
        step = int(batch)
        events.append(f"step {step}")
        return State(step=state.step + 1, total=state.total), {"x": Late(events, step)}

    run(num_steps=6, step_fn=step_fn, log_every_steps=2, save_every_steps=100)
    assert events == [
        *("step 1", "read 1"),  # the first step, which compiles
        *("step 2", "step 3", "read 2"),
        *("step 4", "step 5", "read 3", "read 4"),
        *("step 6", "read 5", "read 6"),  # the last one is saved: nothing is left to overlap
    ]


def test_one_trace_with_donation_across_a_resume(run):
    for num_steps in (3, 6):  # each with a function of its own, as in a new process
        step = jax.jit(lambda state, batch: add(state, batch), donate_argnums=0)
        run(num_steps=num_steps, step_fn=step)
        assert step._cache_size() == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_stops_before_saving(run, bad):
    def poisoned(step):
        return np.float32(bad) if step == 4 else batch_of(step)

    with pytest.raises(InputError) as caught:
        run(num_steps=20, batch_fn=poisoned, log_every_steps=10, save_every_steps=3)
    message = str(caught.value)
    assert f"at step 5 of 20: batch {bad}, total {bad};" in message
    assert "learning rate" in message and str(run.workdir / "ck") in message
    assert run.saved_steps() == [3]
    with contextlib.closing(Checkpoints(run.workdir / "ck", 5)) as checkpoints:
        assert float(checkpoints.restore(create_state())[0].total) == 6


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_leaves(run, number, code):
    before = signal.getsignal(number)

    def interrupting(step):
        if step == 3:
            os.kill(os.getpid(), number)
        return batch_of(step)

    with pytest.raises(Interrupted) as caught:
        run(num_steps=9, batch_fn=interrupting, save_every_steps=100)
    assert caught.value.exit_code == code
    assert "at step 4 of 9" in str(caught.value) and number.name in str(caught.value)
    assert signal.getsignal(number) is before
    assert run.saved_steps() == [4]
    assert float(run(num_steps=9).total) == 45
    assert run.record() == [line(2), line(4), line(6), line(8), line(9)]


def test_a_signal_that_comes_twice_at_once_is_one(run):
    def interrupting(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_of(step)

    with pytest.raises(Interrupted) as caught:
        run(num_steps=9, batch_fn=interrupting, save_every_steps=100)
    assert caught.value.exit_code == 143 and run.saved_steps() == [4]


@pytest.fixture
def interruptible():
    """SIGINT as a command has it; pytest-xdist's workers ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_later_second_signal_acts_at_once(run, interruptible, monkeypatch):
    monkeypatch.setattr(signals, "REPETITION_SECONDS", 0.02)

    def impatient(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)  # ends at once, with KeyboardInterrupt
        return batch_of(step)

    with pytest.raises(KeyboardInterrupt):
        run(num_steps=9, batch_fn=impatient, save_every_steps=2)
    assert run.saved_steps() == [2]


def test_a_signal_in_the_last_step_still_stops_the_command(run):
    def interrupting(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_of(step)

    with pytest.raises(Interrupted):
        run(num_steps=6, batch_fn=interrupting)
    assert run.saved_steps() == [3, 6]


def test_runs_outside_the_main_thread(run):
    states = []
    thread = threading.Thread(target=lambda: states.append(run(num_steps=2)))
    thread.start()
    thread.join()
    assert float(states[0].total) == 3


def test_other_settings_are_refused_entry_by_entry(run):
    run(num_steps=3, meta={"config": {"lr": 0.1, "seed": 0}, "teacher": "aa"})
    with pytest.raises(InputError) as caught:
        run(num_steps=6, meta={"config": {"lr": 0.2, "seed": 0}, "teacher": "bb"})
    message = str(caught.value)
    assert "config/lr: was 0.1, is 0.2" in message and "teacher: was 'aa', is 'bb'" in message
    assert "seed" not in message


def test_a_checkpoint_past_the_end_is_refused(run):
    run(num_steps=6)
    with pytest.raises(InputError, match="at step 6, past the 4 steps"):
        run(num_steps=4)


def test_observers_at_intervals_before_the_state_is_donated(run):
    def draw(state, step):
        return {"total": np.full((2, 2, 1), int(state.total), np.uint8)}, {}

    def rank(state, step):
        return {}, {"interim/half": float(state.total) / 2}

    donating = jax.jit(lambda state, batch: add(state, batch), donate_argnums=0)
    never = Observer(0, lambda *_: 1 / 0)
    observers = (Observer(3, draw), never, Observer(4, rank))
    run(num_steps=7, step_fn=donating, observers=observers)
    found = [x for x in run.record() if "interim/half" in x]
    assert found == [{"stage": "stage", "step": 4, "interim/half": 5.0}]
    names = sorted(p.name for p in (run.workdir / "images" / "stage").iterdir())
    assert names == ["total_0000003.png", "total_0000006.png"]
    drawn = np.asarray(Image.open(run.workdir / "images" / "stage" / names[1]))
    np.testing.assert_array_equal(drawn, np.full((2, 2), 21))


def test_changed_entries():
    saved = {"same": [1, 2], "lr": 0.1, "gone": None, "deep": {"a": 1, "b": {"c": 2}}}
    current = {"same": (1, 2), "lr": 0.2, "deep": {"a": 1, "b": {"c": 3}}, "new": "x"}
    assert changed_entries(saved, current) == [
        "lr: was 0.1, is 0.2",
        "gone: was None, is gone",
        "deep/b/c: was 2, is 3",
        "new: was not there, is 'x'",
    ]
    assert changed_entries(saved, saved) == []
