"""launch.local_processes with small programs in place of the real one."""

import os
import signal
from pathlib import Path

import pytest

from tests.helpers.launch_scripts import calls, environment, install, run, start, wait_until

# Behaves by the number after --process_id=: the lines that follow are one test's.
PROGRAM = """
import signal, time
process = int(sys.argv[-1].partition("=")[2])
def say(*words):
    print(*words, flush=True)
def on(number, frame):
    say("got", signal.Signals(number).name)
    signals.append(number)
signals = []
def listen():
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on)
    say("ready")
def sleep_until(condition):
    while not condition():
        time.sleep(0.02)
"""


@pytest.fixture
def launch(tmp_path):
    """launch(body, *flags): local_processes started with a program of that body."""

    def launch(body, *flags):
        install(tmp_path / "bin", "program", PROGRAM + body)
        variables = environment(tmp_path, tmp_path / "bin")
        words = ["local_processes", "--python=program", *flags, "--", "--config=a b"]
        return start(*words, env=variables)

    return launch


def lines_of(process, status):
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    return out.splitlines(), err


def runs(pid):
    """A process of that number is there; a zombie has no command line any more."""
    command_line = Path(f"/proc/{pid}/cmdline")
    return command_line.exists() and bool(command_line.read_bytes())


def ready(process, count=2):
    """Waits until that many processes listen to signals."""
    for _ in range(count):
        assert process.stdout.readline().endswith("] ready\n")


def test_each_process_knows_its_place_among_all(launch, tmp_path):
    lines_of(launch("", "--processes=3", "--cpu_devices=4"), 0)
    found = sorted(calls(tmp_path / "record"), key=lambda call: call["arguments"][-1])
    (coordinator,) = {call["arguments"][-3] for call in found}
    assert coordinator.startswith("--coordinator=localhost:")
    assert 1024 < int(coordinator.rpartition(":")[2]) < 65536
    assert [call["arguments"] for call in found] == [
        [
            "-m",
            "dimo_jax.main",
            "--config=a b",
            coordinator,
            "--num_processes=3",
            f"--process_id={i}",
        ]
        for i in range(3)
    ]
    assert {call["environment"]["JAX_NUM_CPU_DEVICES"] for call in found} == {"4"}
    assert {call["environment"]["JAX_PLATFORMS"] for call in found} == {"cpu"}


def test_one_gpu_each_and_a_fixed_port(launch, tmp_path):
    lines_of(launch("", "--one_gpu_each", "--port=29412"), 0)
    found = sorted(calls(tmp_path / "record"), key=lambda call: call["arguments"][-1])
    assert [call["environment"]["CUDA_VISIBLE_DEVICES"] for call in found] == ["0", "1"]
    assert {call["arguments"][-3] for call in found} == {"--coordinator=localhost:29412"}


def test_lines_say_whose_they_are_and_none_is_lost(launch):
    body = """
for n in range(300):
    say(f"line {n}  of \\\\ {process}")
print("stderr", file=sys.stderr)
sys.stdout.write("no newline")
"""
    out, _ = lines_of(launch(body), 0)
    for i in range(2):
        mine = [line for line in out if line.startswith(f"[{i}] ")]
        wanted = [f"[{i}] line {n}  of \\ {i}" for n in range(300)]
        assert sorted(mine) == sorted([*wanted, f"[{i}] stderr", f"[{i}] no newline"])
    assert len(out) == 2 * 302


def test_a_log_for_each_process_is_continued(launch, tmp_path):
    for _ in range(2):
        out, _ = lines_of(launch('say("hello from", process)', f"--log_dir={tmp_path}/logs"), 0)
        assert out == []
    for i in range(2):
        assert (tmp_path / f"logs/process_{i}.log").read_text() == 2 * f"hello from {i}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process_once(launch, number):
    process = launch("listen(); sleep_until(lambda: signals); time.sleep(0.3); say('saved')")
    ready(process)
    process.send_signal(number)
    out, err = lines_of(process, 0)
    for i in range(2):
        assert [line for line in out if line.startswith(f"[{i}]")] == [
            f"[{i}] got {number.name}",
            f"[{i}] saved",
        ]
    assert "ended with" not in err


def test_ctrl_c_at_the_terminal_reaches_every_process_once(launch, tmp_path):
    # A terminal sends SIGINT to the whole foreground group; here the group is the script's own.
    install(
        tmp_path / "bin", "program", PROGRAM + "listen(); sleep_until(lambda: len(signals) > 0)"
    )
    process = start(
        *("local_processes", "--python=program", "--", "a"),
        env=environment(tmp_path, tmp_path / "bin"),
        start_new_session=True,
    )
    ready(process)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = lines_of(process, 0)
    assert sorted(out) == ["[0] got SIGINT", "[1] got SIGINT"]


def test_when_one_fails_the_others_are_told_and_its_status_counts(launch):
    process = launch(
        "listen()\nif process == 1:\n    sys.exit(5)\nsleep_until(lambda: signals)\nsys.exit(9)\n"
    )
    out, err = lines_of(process, 5)
    assert "[0] got SIGTERM" in out
    assert "process 1 ended with status 5" in err


def test_a_killed_process_counts_as_137(launch):
    process = launch(
        "listen()\n"
        "if process == 0:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "sleep_until(lambda: signals)\n"
    )
    _, err = lines_of(process, 137)
    assert "process 0 ended with status 137" in err


def test_one_that_does_not_leave_is_killed_after_the_grace(launch):
    process = launch(
        "listen()\nif process == 1:\n    sys.exit(5)\nsleep_until(lambda: False)\n", "--grace_s=1"
    )
    out, _ = lines_of(process, 5)
    assert "[0] got SIGTERM" in out


def test_what_a_process_leaves_behind_ends_with_it(launch, tmp_path):
    body = """
import subprocess
child = subprocess.Popen(["sleep", "600"])
open(os.environ["RECORD"] + ".child", "a").write(f"{child.pid}\\n")
"""
    lines_of(launch(body), 0)
    left = [int(pid) for pid in (tmp_path / "record.child").read_text().split()]
    assert len(left) == 2
    wait_until(lambda: not any(map(runs, left)), "the children's end")


def test_a_missing_interpreter_is_reported(tmp_path):
    words = ["local_processes", "--python=no-such-python", "--", "a"]
    out, err = run(*words, env=environment(tmp_path), status=127)
    assert "no-such-python" in out
    assert "ended with status 127" in err
