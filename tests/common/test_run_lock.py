"""One process at a time for a folder: the living are left alone, the dead do not block."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dimo_jax.common import files, object_store, processes, run_lock
from dimo_jax.common.errors import InputError

HOLDER = """
import sys, time
from dimo_jax.common import run_lock
from dimo_jax.common import files
run_lock.SETTLE_SECONDS = float(sys.argv[2])
try:
    with run_lock.hold(files.path(sys.argv[1]), "--workdir=x"):
        print("held", flush=True)
        time.sleep(float(sys.argv[3]))
except Exception as error:
    print(error, flush=True)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (
        ("BEAT", 0.1), ("LEFT", 1.0), ("SURE", 0.6), ("SETTLE", 0.05), ("_LOOK", 0.05),
    ):  # fmt: skip
        monkeypatch.setattr(run_lock, f"{name}_SECONDS", seconds)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / run_lock.FILE_NAME


def start(path, settle=0.05, seconds=60):
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), str(settle), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def started(*arguments):
    process = start(*arguments)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def record(path, beat=0, **fields):
    """The file of a process on another machine."""
    found = {
        "host": "far", "boot": "b", "namespace": "n", "pid": 7, "start": 5, "token": "t",
        "since": "2026-01-01", "beat": beat, **fields,
    }  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    files.write_file(path, json.dumps(found).encode())


def take(path, notes=None):
    with run_lock.hold(path, "--workdir=x", (notes if notes is not None else []).append):
        return json.loads(path.read_bytes())


def test_the_file_names_its_process_and_goes_with_it(path):
    with run_lock.hold(path, "--workdir=x"):
        found = json.loads(path.read_bytes())
        assert found["pid"] == os.getpid() and found["host"] and found["start"]
        with pytest.raises(
            InputError, match=rf"--workdir=x is in use by process {os.getpid()} on "
        ):
            take(path)
        assert files.guards
    assert not files.guards and not path.parent.exists(), "it made the folder, which stays empty"
    path.parent.mkdir()
    take(path)
    assert list(path.parent.iterdir()) == []


def test_a_living_process_is_named_and_a_killed_one_does_not_block(path):
    with started(path) as process:
        began = time.monotonic()
        with pytest.raises(InputError, match=rf"process {process.pid} on .* \(kill {process.pid}"):
            take(path)
        assert time.monotonic() - began < 0.5
        os.kill(process.pid, signal.SIGSTOP)  # it lives, though it writes nothing
        time.sleep(1.2)
        with pytest.raises(InputError, match=f"process {process.pid}"):
            take(path)
        process.kill()
        # The signal takes a moment to arrive; then a zombie until this process asks for its end.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        began, notes = time.monotonic(), []
        assert take(path, notes)["pid"] == os.getpid()
        assert time.monotonic() - began < 0.5 and notes == []


def test_a_number_that_serves_again_is_another_process(path):
    own = processes.this()
    fields = {"host": own.host, "boot": own.boot, "namespace": own.namespace, "pid": own.pid}
    record(path, **fields, start=own.start + 1)
    assert take(path)["start"] == own.start


def test_a_container_of_the_same_name_is_another_machine(path):
    """Its number 1 is not this container's, be that one there or not."""
    own = processes.this()
    record(path, host=own.host, boot=own.boot, namespace="pid:[1]", pid=own.pid, start=own.start)
    began, notes = time.monotonic(), []
    take(path, notes)
    assert time.monotonic() - began >= 1.0 and "waits up to 1 s" in notes[0]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b'{"pid": "x"}', b"\x1b]0;x"])
def test_a_machine_that_is_gone_does_not_block(path, content, capsys):
    record(path)
    if content is not None:
        path.write_bytes(content)
    began, notes = time.monotonic(), []
    assert take(path, notes)["pid"] == os.getpid()
    assert 1.0 <= time.monotonic() - began < 5
    (note,) = notes
    assert ("process 7 on far (since 2026-01-01)" if content is None else "an unknown") in note


def test_a_machine_that_writes_is_left_alone(path):
    stop = threading.Event()

    def beats():
        beat = 0
        while not stop.wait(0.2):
            beat += 1
            record(path, beat)

    record(path)
    thread = threading.Thread(target=beats)
    thread.start()
    try:
        with pytest.raises(InputError, match=r"in use by process 7 on far .*\(kill 7 there\)"):
            take(path)
    finally:
        stop.set()
        thread.join()
    assert json.loads(path.read_bytes())["host"] == "far"


def test_who_ends_while_another_waits_lets_it_in(path):
    record(path)
    threading.Timer(0.3, path.unlink).start()
    began = time.monotonic()
    take(path)
    assert time.monotonic() - began < 0.9


def test_of_many_that_take_over_one_has_it(path):
    record(path, **{**processes.this().__dict__, "start": 1})  # of a dead process: at once
    everyone = [start(path, 1.0, 4) for _ in range(5)]
    said = [process.communicate(timeout=60)[0] for process in everyone]
    assert [text.startswith("held") for text in said].count(True) == 1, said
    assert not path.exists()


def test_what_was_taken_over_is_not_written_again(path, tmp_path):
    with run_lock.hold(path, "--workdir=x"):
        files.write_file(tmp_path / "a", b"1")
        record(path)
        deadline = time.monotonic() + 5
        with pytest.raises(InputError, match="--workdir=x was taken over by process 7 on far"):
            while time.monotonic() < deadline:
                files.write_file(tmp_path / "a", b"1")
        for write in (
            lambda: files.write_file(tmp_path / "b", b"2"),
            lambda: files.write_folder(tmp_path / "b", {"x": b"2"}),
        ):
            with pytest.raises(InputError, match="was taken over"):
                write()
    assert not (tmp_path / "b").exists() and json.loads(path.read_bytes())["host"] == "far"


def test_after_a_pause_it_looks_before_it_writes(path, tmp_path, monkeypatch):
    """As when the whole machine slept: no thread has noticed anything."""
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 60)
    with run_lock.hold(path, "--workdir=x"):
        record(path)
        files.write_file(tmp_path / "a", b"1")  # sure enough for a moment
        time.sleep(0.7)
        with pytest.raises(InputError, match="was taken over"):
            files.write_file(tmp_path / "b", b"2")
    assert not (tmp_path / "b").exists()


def test_a_store_that_fails_is_told_and_one_that_hangs_keeps_nobody(path, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    with run_lock.hold(path, "--workdir=x"):
        monkeypatch.setattr(object_store, "read_start", fail)
        time.sleep(1.0)
        with pytest.raises(InputError, match="cannot tell whether --workdir=x is still"):
            files.write_file(tmp_path / "b", b"2")
    monkeypatch.undo()
    monkeypatch.setattr(run_lock, "RELEASE_SECONDS", 0.2)
    began = time.monotonic()
    with run_lock.hold(path.with_name("other"), "--workdir=y"):
        hung = threading.Event()
        monkeypatch.setattr(object_store, "read_start", lambda *_: hung.wait(30))
    assert time.monotonic() - began < 2
    hung.set()


def test_who_removes_the_file_does_not_end_the_run(path, tmp_path):
    with run_lock.hold(path, "--workdir=x"):
        path.unlink()
        time.sleep(0.5)
        assert json.loads(path.read_bytes())["pid"] == os.getpid()
        files.write_file(tmp_path / "a", b"1")


def test_a_planted_link_is_not_followed(path, tmp_path):
    (tmp_path / "mine").write_text("mine")
    path.parent.mkdir()
    path.symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="run.lock is a link"):
        take(path)
    assert (tmp_path / "mine").read_text() == "mine"
