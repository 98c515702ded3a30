"""Traces of some steps of a stage, read by JAX's own reader of what xprof reads."""

import os
import signal

import jax
import pytest

from dimo_jax.common.errors import InputError, Interrupted
from dimo_jax.training import traces
from tests.helpers.recorded import recorded_steps
from tests.helpers.stage_run import Run, add, batch_of


@pytest.fixture
def run(tmp_path, capsys):
    return Run(tmp_path, capsys)


def request(folder, *window):
    return traces.Request(traces.Window(*window), folder / "profile", "stage")


@pytest.mark.parametrize(("window", "steps"), [((2, 3), [2, 3, 4]), ((5, 1), [5]), ((0, 1), [0])])
def test_the_steps_of_the_window_are_recorded_and_no_others(run, window, steps):
    state = run(num_steps=6, trace=request(run.workdir, *window))
    assert float(state.total) == 21
    session = f"plugins/profile/stage_step_{window[0]}"
    (path,) = (run.workdir / "profile" / session).iterdir()
    assert path.name == "process_0.xplane.pb" and recorded_steps(path) == steps
    assert str(path) in run.capsys.readouterr().err


def test_a_trace_begins_and_ends_when_the_device_has_done_what_it_was_given(run, monkeypatch):
    """Else it would hold what an earlier step left to do, and lack what the last one did."""
    events = []
    for module, name in ((jax, "block_until_ready"), (jax.profiler, "start_trace"),
                         (jax.profiler, "stop_trace")):  # fmt: skip
        original = getattr(module, name)

        def noted(*given, name=name, original=original, **options):
            waited = int(given[0].step) if name == "block_until_ready" else None
            events.append((name, waited))
            return original(*given, **options)

        monkeypatch.setattr(module, name, noted)
    run(num_steps=6, trace=request(run.workdir, 2, 2))
    assert events == [
        ("block_until_ready", 2), ("start_trace", None), ("block_until_ready", 4),
        ("stop_trace", None),
    ]  # fmt: skip


def test_what_was_made_before_this_start_is_not_recorded(run):
    run(num_steps=3)
    run(num_steps=6, trace=request(run.workdir, 2, 2))
    assert not (run.workdir / "profile").exists()
    assert "no trace: step 2 was made before this start" in run.capsys.readouterr().err


def test_a_stopped_run_keeps_what_was_recorded(run):
    def stopped(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_of(step)

    with pytest.raises(Interrupted):
        run(num_steps=9, batch_fn=stopped, trace=request(run.workdir, 2, 5))
    (path,) = (run.workdir / "profile").rglob("*.pb")
    assert recorded_steps(path) == [2, 3]


def test_an_error_ends_the_trace_and_leaves_none(run):
    def broken(state, batch):
        if batch == 4:
            raise RuntimeError("the device is gone")
        return add(state, batch)

    with pytest.raises(RuntimeError, match="gone"):
        run(step_fn=broken, trace=request(run.workdir, 2, 3))
    assert not (run.workdir / "profile").exists()
    # Two at a time would be refused by JAX.
    run(trace=request(run.workdir, 3, 1))
    assert len(list((run.workdir / "profile").rglob("*.pb"))) == 1


@pytest.mark.parametrize("text", ["", "abc", "5", "-1:3", "5:0", "5:", "1:2:3", "1.5:2", "trace/"])
def test_what_is_no_window_is_one_sentence(text):
    with pytest.raises(InputError, match=f"--profile={text} is not STEP:STEPS, .*=20:5"):
        traces.window(text)


def test_a_window_is_read():
    assert traces.window("20:5") == (20, 5) and traces.window("20:5").end == 25
