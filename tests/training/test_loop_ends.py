"""How a stage ends before its end: skipped updates, damage, a full disk, other processes."""

import contextlib
import math
import os
import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax.common.errors import InputError, Interrupted
from dimo_jax.parallel import distributed
from dimo_jax.training.checkpoints import Checkpoints
from tests.helpers.stage_run import Run, State, batch_of, line


@pytest.fixture
def run(tmp_path, capsys):
    return Run(tmp_path, capsys)


@jax.jit
def add_finite(state, batch):
    """`add` that leaves out what is not finite, and says so; two updates in one step."""
    good = jnp.isfinite(batch)
    total = state.total + jnp.where(good, batch, 0)
    skipped = jnp.where(good, 0.0, 2.0)
    return State(step=state.step + 1, total=total), {"batch": batch, "updates_skipped": skipped}


def failing_at(*steps):
    return lambda step: np.float32(math.nan) if step + 1 in steps else batch_of(step)


def skip_line(step, total, batch):
    batch = {"train/batch": batch, "train/updates_skipped_total": float(total)}
    return {"stage": "stage", "step": step} | batch


def test_skipped_updates_are_counted_and_do_not_stop_the_run(run):
    batch_fn = failing_at(2, 3, 5)
    state = run(num_steps=8, step_fn=add_finite, batch_fn=batch_fn, max_skipped=3)
    assert float(state.total) == 36 - 2 - 3 - 5
    assert run.record() == [
        skip_line(2, 2, None),
        skip_line(4, 4, 4.0),
        skip_line(6, 6, 6.0),
        skip_line(8, 6, 8.0),
    ]
    assert "skipped 6" in run.capsys.readouterr().err


def test_no_word_of_skipped_updates_where_there_are_none(run):
    run(step_fn=add_finite)
    assert "skipped" not in run.capsys.readouterr().err
    assert run.record()[-1] == skip_line(6, 0, 6.0)


def test_the_count_is_exact_across_a_resume(run):
    whole = Run(run.workdir / "whole", run.capsys)
    batch_fn = failing_at(1, 3, 4, 8)
    whole(num_steps=9, step_fn=add_finite, batch_fn=batch_fn)

    def interrupting(step):
        if step in (3, 6):
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_fn(step)

    for _ in range(2):
        with pytest.raises(Interrupted):
            run(num_steps=9, step_fn=add_finite, batch_fn=interrupting)
    run(num_steps=9, step_fn=add_finite, batch_fn=batch_fn)
    assert run.record() == whole.record()
    assert run.record()[-1]["train/updates_skipped_total"] == 8


@pytest.mark.parametrize("interrupted", [False, True])
def test_too_many_skipped_in_a_row_stop_with_step_and_seed(run, interrupted):
    def batch_fn(step):
        if interrupted and step == 6:  # done is 7, inside the row
            os.kill(os.getpid(), signal.SIGTERM)
        return failing_at(2, 6, 7, 8, 9, 10)(step)

    options = dict(num_steps=20, step_fn=add_finite, batch_fn=batch_fn, max_skipped=4, seed=7)
    if interrupted:
        with pytest.raises(Interrupted):
            run(**options)
    with pytest.raises(InputError) as caught:
        run(**options)
    message = str(caught.value)
    assert "not finite in 4 steps in a row, the last of them step 9 of 20 (seed 7)" in message
    # Saved in the row, so that it is what the same command goes on from, with the row counted.
    newest = 7 if interrupted else 6
    assert f"from step {newest}, the newest checkpoint in {run.workdir}/ck" in message
    assert "config.max_skipped_in_a_row" in message
    with pytest.raises(InputError, match="the last of them step 9 of 20"):
        run(**options)


def test_any_number_in_a_row_without_a_limit(run):
    state = run(num_steps=12, step_fn=add_finite, batch_fn=lambda _: np.float32(math.nan))
    assert float(state.total) == 0
    assert run.record()[-1]["train/updates_skipped_total"] == 24


def test_a_metric_that_is_not_finite_without_a_skipped_update_still_stops(run):
    def step_fn(state, batch):
        state, values = add_finite(state, batch)
        return state, values | {"other": jnp.where(state.step == 4, math.inf, 0.0)}

    with pytest.raises(InputError, match="not finite at step 4 of 6: other inf"):
        run(step_fn=step_fn, batch_fn=failing_at(2), max_skipped=3)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint(run):
    run(num_steps=7)
    (run.workdir / "ck" / "7" / "meta" / "metadata").write_text("{")
    with pytest.raises(InputError) as caught:
        run(num_steps=9)
    message = str(caught.value)
    assert f"{run.workdir}/ck/7 cannot be read" in message
    assert f"the one before is {run.workdir}/ck/6: give" in message
    assert "--config.checkpoint.allow_fallback=True" in message
    assert run.saved_steps() == [3, 6, 7]
    run.capsys.readouterr()
    assert float(run(num_steps=9, allow_fallback=True).total) == 45
    told = run.capsys.readouterr().err
    assert f"{run.workdir}/ck/7 cannot be read" in told and "step 6 is used instead" in told
    assert "continues at step 6 of 9" in told
    assert run.record() == [line(2), line(4), line(6), line(8), line(9)]
    names = sorted(path.name for path in (run.workdir / "ck").iterdir())
    assert names == ["3", "6", "7.damaged", "9"]


@contextlib.contextmanager
def no_file_above(num_bytes):
    """Writing more fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def create_large():
    return State(step=jnp.int32(0), total=jax.random.normal(jax.random.key(0), (50_000,)))


def add_large(state, batch):
    return State(step=state.step + 1, total=state.total + batch), {"batch": batch}


@pytest.mark.parametrize("save_every_steps", [2, 4])  # noticed at the next save, or at the end
def test_a_save_that_fails_stops_the_run_and_keeps_what_was_saved(run, caplog, save_every_steps):
    options = dict(create=create_large, step_fn=add_large, save_every_steps=save_every_steps)
    run(num_steps=4, **options)
    with no_file_above(50_000), pytest.raises(InputError) as caught:
        run(num_steps=8, **options)
    failed = 4 + save_every_steps
    assert str(caught.value).startswith(f"checkpoint {run.workdir}/ck/{failed} cannot be written: ")
    assert "File too large" in str(caught.value)
    assert "the one of step 4 stays valid; once that is mended, the same comm" in str(caught.value)
    assert not [record for record in caplog.records if record.exc_info]
    state = run(num_steps=8, **options)
    assert "continues at step 4 of 8" in run.capsys.readouterr().err
    np.testing.assert_array_equal(state.total, add_up(create_large().total, 8))
    assert [x["step"] for x in run.record()] == [2, 4, 6, 8]


def add_up(total, num_steps):
    for step in range(num_steps):
        total = total + batch_of(step)
    return total


def test_a_lost_process_ends_the_stage_without_waiting(run, monkeypatch):
    def losing(step):
        if step == 5:
            raise jax.errors.JaxRuntimeError("Gloo all-reduce failed: Connection closed by peer")
        return batch_of(step)

    monkeypatch.setattr(distributed, "started", lambda: True)
    monkeypatch.setattr(distributed, "stop_together", lambda: False)
    monkeypatch.setattr(distributed, "agree", lambda flag: flag)
    waits = []
    monkeypatch.setattr(Checkpoints, "wait", lambda self: waits.append("waited"))
    monkeypatch.setattr(Checkpoints, "abandon", lambda self: waits.append("abandoned"))
    with pytest.raises(distributed.ProcessLost) as caught:
        run(num_steps=8, batch_fn=losing)
    assert waits == ["abandoned"]
    assert str(caught.value).startswith(f"stage, checkpoints in {run.workdir}/ck: another of the")
    assert "Connection closed by peer" in str(caught.value)


def test_of_many_processes_the_runtime_has_sigterm(run, monkeypatch):
    calls = []
    monkeypatch.setattr(distributed, "started", lambda: True)
    monkeypatch.setattr(distributed, "agree", lambda flag: flag)
    monkeypatch.setattr(
        distributed, "stop_together", lambda: calls.append(signal.getsignal(signal.SIGTERM)) or
        len(calls) == 5
    )  # fmt: skip
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        run(num_steps=9, save_every_steps=100)
    assert caught.value.exit_code == 0 and "at step 5 of 9, saved in" in str(caught.value)
    assert run.saved_steps() == [5] and calls == [before] * 5


def test_of_many_processes_sigint_is_passed_on_as_sigterm(run, monkeypatch):
    received = []
    monkeypatch.setattr(distributed, "started", lambda: True)
    monkeypatch.setattr(distributed, "agree", lambda flag: flag)
    monkeypatch.setattr(distributed, "stop_together", lambda: bool(received))
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))

    def interrupting(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return batch_of(step)

    try:
        with pytest.raises(Interrupted) as caught:
            run(num_steps=9, batch_fn=interrupting, save_every_steps=100)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.exit_code == 0 and run.saved_steps() == [4]
