"""How a command ends where it is one of several processes, and what it takes as flags."""

import errno
import os
import sys
import types

import jax
import pytest

from dimo_jax import cli
from dimo_jax.common.command_flags import Flags
from dimo_jax.common.errors import InputError, Interrupted
from dimo_jax.parallel import distributed


class Left(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a body as a command of two processes; (how it ended, status, stderr)."""

    def end(status):
        raise Left(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(distributed, "GRACE_SECONDS", 0)
    waited = []

    def barrier(name):
        waited.append(name)
        if name == lost_at:
            raise jax.errors.JaxRuntimeError("Barrier failed because a task is gone")

    lost_at = None

    def run(body, *arguments, many=True, lose=None):
        nonlocal lost_at
        lost_at = lose
        waited.clear()
        monkeypatch.setattr(distributed, "started", lambda: many)
        monkeypatch.setattr(distributed, "barrier", barrier)
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        values = Flags()
        cli.define_process_flags(values)
        with pytest.raises((Left, SystemExit)) as stopped:
            cli.run(lambda: body(values), values)
        # The others are waited for at a good end, and there alone.
        assert waited == ["end"] * (stopped.value.args[0] == 0 or lose is not None)
        return stopped.type, stopped.value.args[0], capsys.readouterr().err

    return run


def raising(error):
    def body(_):
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("no such bundle"), 2, "error: no such bundle\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (distributed.ProcessLost("fit: gone"), 1, "error: fit: gone\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 1, "error: the disk is full wh"),
    ],
)
def test_a_failure_leaves_without_waiting_for_the_others(run, error, status, message):
    how, found, err = run(raising(error))
    assert (how, found) == (Left, status)
    assert err.startswith(message) and err.count("\n") == 1
    if not isinstance(error, distributed.ProcessLost):
        assert run(raising(error), many=False) == (SystemExit, status, err)


def test_a_lost_process_is_one_sentence_wherever_it_is_noticed(run):
    def body(_):
        try:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: Gloo: Connection reset by peer\nmore")
        except jax.errors.JaxRuntimeError as error:
            raise TimeoutError("while saving") from error

    how, status, err = run(body)
    assert (how, status) == (Left, 1) and err.count("\n") == 1
    assert err.startswith("error: stopped: another of the 1 processes has ended, and process 0")


NCCL = "INTERNAL: NCCL operation ncclCommInitRank(comm) failed: unhandled cuda error. Last NCCL "


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        (f"{NCCL}warning 'Cuda failure 2 'out of memory''", 2, "the device's memory is too small"),
        (
            f"{NCCL}warning 'Error while creating shared memory segment /dev/shm/nccl-Ab1, "
            "error: No space left on device (28)'",
            1,
            "the disk is full while writing /dev/shm/nccl-Ab1; free",
        ),
    ],
)
def test_the_trouble_of_this_process_comes_before_what_it_does_to_the_others(
    run, text, status, message
):
    def body(_):
        try:
            raise jax.errors.JaxRuntimeError(text)
        except jax.errors.JaxRuntimeError as error:
            raise jax.errors.JaxRuntimeError("UNKNOWN: Connection closed by peer") from error

    how, found, err = run(body)
    assert (how, found) == (Left, status) and err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_a_defect_keeps_its_traceback(run):
    how, status, err = run(raising(ZeroDivisionError("defect")))
    assert (how, status) == (Left, 1)
    assert "Traceback" in err and err.endswith("ZeroDivisionError: defect\n")


def test_all_stopped_together_is_a_good_end(run):
    how, status, err = run(raising(Interrupted("fit: all 2 processes stopped", 0)))
    assert (how, status, err) == (SystemExit, 0, "fit: all 2 processes stopped\n")
    assert run(lambda _: None) == (SystemExit, 0, "")
    how, status, err = run(lambda _: None, lose="end")
    assert (how, status) == (Left, 1) and "has ended, and process 0" in err


def test_a_full_disk_behind_an_explained_error_is_no_bad_input(run):
    error = InputError("checkpoint 8 cannot be written: the disk is full")
    error.__cause__ = ValueError("RESOURCE_EXHAUSTED: No space left on device")
    assert run(raising(error), many=False)[1:] == (1, f"error: {error}\n")


def test_the_flags_reach_jax(run, monkeypatch):
    seen = types.SimpleNamespace()
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: vars(seen).update(given))
    given = ["--coordinator=host:1", "--num_processes=3", "--process_id=2"]
    how, status, _ = run(cli.start_processes, *given)
    assert (how, status) == (SystemExit, 0)
    assert (seen.coordinator_address, seen.num_processes, seen.process_id) == ("host:1", 3, 2)


@pytest.mark.parametrize("wrong", ["--num_processes=0", "--process_id=-1", "--num_processes=x"])
def test_flags_out_of_range(run, wrong):
    _, status, err = run(cli.start_processes, wrong)
    assert status == 2 and wrong.split("=")[0].lstrip("-") in err
