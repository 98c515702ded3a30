"""launch.tpu_vm, and on the workers tpu_worker.sh, against a cloud that the test plays."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from dimo_jax.common.errors import InputError
from launch import tpu_vm
from tests.helpers.launch_scripts import (
    AWKWARD,
    LAUNCH,
    arguments,
    calls,
    install,
    run,
    start,
    wait_until,
)
from tests.helpers.tpu_cloud import PROGRAM, WHERE, WORKERS, Cloud, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tpu_worker.sh reads /proc")

NAMED = ["--name=dimo", *WHERE]
RUN = ["run", *NAMED, "--accelerator_type=v4-16"]


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    cloud = Cloud(tmp_path)
    checkout = tmp_path / "checkout"
    shutil.copytree(LAUNCH, checkout / "launch")
    git = ["git", "-C", checkout, "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=all"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(tpu_vm, "ROOT", checkout)
    yield cloud
    cloud.end(0)  # whatever still runs there


def test_run_creates_installs_starts_and_replaces_a_preempted_slice(cloud):
    def events():
        for name, before, after, requests in [
            ("queued", "SUSPENDING", "SUSPENDED", 2),
            ("node", "STOPPING", "PREEMPTED", 3),
        ]:
            yield from until(cloud.runs_everywhere)
            setattr(cloud, name, before)
            for worker in WORKERS:
                cloud.signal_machine(worker, signal.SIGTERM)
            yield
            setattr(cloud, name, after)
            while len(cloud.called("queued-resources", "create")) < requests:
                yield
        yield from until(cloud.runs_everywhere)
        cloud.end(0)

    cloud.events = events()
    tpu_vm.main([*RUN, "--spot", "--create_flag=--network=n", "--", *AWKWARD], cloud)
    assert cloud.programs() == 6 * [AWKWARD]
    assert cloud.called("queued-resources", "create") == 3 * [
        [
            *("queued-resources", "create", "dimo", *WHERE, "--accelerator-type=v4-16"),
            *("--runtime-version=tpu-ubuntu2204-base", "--node-id=dimo", "--spot", "--network=n"),
        ]
    ]
    assert cloud.called("queued-resources", "delete") == 2 * [
        ["queued-resources", "delete", "dimo", *WHERE, "--force", "--quiet"]
    ]
    assert cloud.called("queued-resources", "list")[0] == [
        *("queued-resources", "list", *WHERE, "--filter=name~/queuedResources/dimo$"),
        "--format=value(state.state)",
    ]
    assert cloud.notes[-1].endswith(f"launch.tpu_vm delete --name=dimo {' '.join(WHERE)}")
    assert arguments(cloud.record, "python3")[-1] == [
        *("-m", "uv", "pip", "install", "--quiet", "--python=.venv/bin/python"),
        *("--constraint=constraints.txt", "--editable", ".[tpu]"),
    ]


def test_a_machine_that_went_down_under_the_program_is_no_end_of_the_run(cloud):
    def events():
        # Maintenance: the worker comes back with its disk. Its program saved and left with 0, and
        # so did the other's, which then counts as ended.
        yield from until(lambda: len(cloud.programs()) == 2)
        cloud.signal_machine("worker-0", signal.SIGTERM)
        os.kill(cloud.process_of("worker-1", "program"), signal.SIGTERM)
        yield from until(lambda: len(cloud.programs()) == 4)
        # Power lost: nothing was written down.
        for worker in WORKERS:
            cloud.signal_machine(worker, signal.SIGKILL)
        yield from until(lambda: len(cloud.programs()) == 6)
        cloud.end(0)

    cloud.events = events()
    tpu_vm.main([*RUN, "--", "--config=c"], cloud)
    assert len(cloud.called("queued-resources", "create")) == 1
    assert len(cloud.called("tpu-vm", "scp")) == 1


@pytest.mark.parametrize(
    "found, steps, failing",
    [
        ("absent waiting new running ended", "request install start", ()),
        ("running lost absent waiting new stopped", "delete request install start", ()),
        ("running unreachable running idle ended", "start", ()),
        ("new new idle ended", "install install start start", (0, 2)),
        ("lost lost absent ended", "delete delete request", (0,)),
        ("broken running broken stopped", "logs start logs start", (0, 1)),
        ("broken broken broken SystemExit", "logs start logs start logs", ()),
        ("refused SystemExit", "logs", ()),
        ("failed SystemExit", "", ()),
        # The first request fails for what is wrong with it; a later one is repeated.
        ("absent CalledProcessError", "request", (0,)),
        ("absent lost absent absent ended", "request delete request request", (2,)),
    ],
)
def test_each_round_does_what_is_due(cloud, monkeypatch, found, steps, failing):
    states, done, *end = iter(found.split()), [], found.split()[-1]

    def step(name):
        done.append(name)
        if len(done) - 1 in failing:
            raise subprocess.CalledProcessError(1, name)

    monkeypatch.setattr(tpu_vm.Slice, "find", lambda slice_: next(states))
    for name in ("request", "delete", "install", "start", "logs"):
        monkeypatch.setattr(tpu_vm.Slice, name, lambda slice_, name=name: step(name))
    ends = {"SystemExit": SystemExit, "CalledProcessError": subprocess.CalledProcessError}
    with pytest.raises(ends[end[0]]) if end[0] in ends else contextlib.nullcontext():
        tpu_vm.main([*RUN, "--max_failures=2", "--", "--config=c"], cloud)
    assert done == steps.split()


@pytest.mark.parametrize(
    "queued, node, found",
    [
        ("", "", "absent"),
        ("WAITING_FOR_RESOURCES", "", "waiting"),
        ("FAILED", "", "failed"),
        ("SUSPENDED", "", "lost"),
        ("ACTIVE", "PREEMPTED", "lost"),
        ("ACTIVE", "CREATING", "waiting"),
        ("ACTIVE", subprocess.CalledProcessError(1, "gcloud"), "unreachable"),
        ("ACTIVE", "READY", "new"),
    ],
)
def test_what_a_round_finds(cloud, queued, node, found):
    cloud.provide()
    cloud.queued, cloud.node = queued, node
    assert tpu_vm.Slice(tpu_vm.read_flags(["status", *NAMED]), cloud).find() == found


@pytest.mark.parametrize(
    "workers, state",
    [
        ("running, ended 0", "running"),
        ("running, ended 1", "running"),
        ("new, idle", "new"),
        ("stopped, ended 0", "stopped"),
        ("ended 1, ended 2", "refused"),
        ("ended 0, ended 143", "broken"),
        ("ended 0, ended 0", "ended"),
        ("ended 0, interrupted", "idle"),
        ("idle, idle", "idle"),
    ],
)
def test_the_programs_state_is_that_of_all_workers(workers, state):
    assert tpu_vm.program_state(workers.split(", ")) == state


def test_the_steps_one_by_one(cloud, capsys):
    def does(*words):
        tpu_vm.main([*words[:1], *NAMED, *words[1:]], cloud)
        return capsys.readouterr().out.strip().splitlines()

    does("create", "--accelerator_type=v6e-8")
    assert "--runtime-version=v2-alpha-tpuv6e" in cloud.called("queued-resources", "create")[0]
    host = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
    assert does("status") == ["slice dimo ACTIVE", *2 * [f"worker {host} new"]]
    does("install")
    assert does("status")[1:] == 2 * [f"worker {host} idle"]

    begin = ["start", "--module=dimo_jax.benchmark", "--", *AWKWARD]
    does(*begin)
    wait_until(lambda: len(cloud.programs()) == 2, "two starts")
    assert calls(cloud.record, "python")[0]["arguments"] == ["-m", "dimo_jax.benchmark", *AWKWARD]
    assert does("status")[1:] == 2 * [f"worker {host} running"]
    with pytest.raises(subprocess.CalledProcessError) as failed:
        does(*begin)
    assert failed.value.returncode == 2 and "runs the program already" in failed.value.stderr
    assert does("logs", "--lines=1") == 2 * ["hello from the program"]
    assert does("logs", "--lines=1", "--worker=1") == ["hello from the program"]

    does("stop")
    wait_until(lambda: does("status")[1:] == 2 * [f"worker {host} stopped"], "the program's end")
    assert "saved" in (cloud.folder / "worker-0/dimo_jax_run/log").read_text()
    # Stopped by hand, run leaves it so.
    does("run", "--accelerator_type=v6e-8", "--", "--config=c")
    assert len(cloud.programs()) == 2
    does("delete")
    assert does("status") == ["slice dimo absent"]


def test_the_workers_get_the_commit_and_not_what_is_changed(cloud):
    cloud.provide()
    with (tpu_vm.ROOT / "launch/tpu_vm.py").open("a") as file:
        file.write("# changed\n")
    tpu_vm.main(["install", *NAMED, "--python_version=3.13"], cloud)
    installed = cloud.folder / "worker-1/dimo_jax/launch/tpu_vm.py"
    assert installed.read_text() == (LAUNCH / "tpu_vm.py").read_text()
    assert any("--python=3.13" in call for call in arguments(cloud.record, "python3"))
    assert "what is not committed stays here; the workers get HEAD" in cloud.notes


@pytest.mark.parametrize("command", tpu_vm.COMMANDS[1:])
def test_a_dry_run_prints_what_is_run(cloud, monkeypatch, capsys, command):
    words = [command, *RUN[1:], "--ssh_flag=--internal-ip", "--", *AWKWARD]
    tpu_vm.main([command, "--dry-run", *words[1:]])
    printed = shlex.split(capsys.readouterr().out)
    assert printed and not cloud.gcloud_calls

    seen = []
    for name in ("run", "read"):
        monkeypatch.setattr(cloud, name, lambda words, **_: seen.append(words) or "ACTIVE")
    tpu_vm.main(words, cloud)
    run_too = "\0".join(word for words in seen if "--porcelain" not in words for word in words)
    assert printed == re.sub("/[^=\0]*(/dimo_jax.tar.gz)", r"/tmp\1", run_too).split("\0")


def test_a_dry_run_of_run_prints_all_its_steps(capsys):
    tpu_vm.main([*RUN, "--dry-run", "--", "--config=c"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line[0] != "#"]
    steps = "create list describe archive scp ssh ssh ssh list ssh delete".split()
    assert [(set(steps) & {*line.split()}).pop() for line in lines] == steps


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["create", *NAMED, "--accelerator_type=v5e-16"], "gcloud's name is v5litepod-16"),
        (["create", *NAMED, "--accelerator_type=v9-8"], "no image is known for v9-8"),
        (["launch"], "'launch'"),
        ([], "COMMAND"),
        (["run", "--name=dimo", "--", "a"], "--zone is missing"),
        (["run", *NAMED, "--", "a"], "--accelerator_type is missing"),
        (["status", "--name=My_TPU", "--zone=z"], "a letter first"),
        ([*RUN, "--poll_s=often", "--", "a"], "'often' is not a number of seconds"),
        ([*RUN, "--max_failures=-1", "--", "a"], "not a whole number from 0"),
        (["logs", *NAMED, "--lines=0"], "not a whole number from 1"),
        (["start", *NAMED], "nothing follows --"),
    ],
)
def test_bad_input_is_one_sentence(cloud, words, complaint):
    with pytest.raises(InputError, match=re.escape(complaint)) as refused:
        tpu_vm.main(words, cloud)
    assert len(str(refused.value).splitlines()) == 1 and not cloud.gcloud_calls


def test_the_program_outlives_the_connection(cloud):
    # gcloud's ssh ends, and with it its process group; the program must go on.
    home = cloud.folder / "worker-0"
    shutil.copytree(LAUNCH, home / "dimo_jax/launch")
    install(home / "dimo_jax/.venv/bin", "python", PROGRAM)
    command = f"bash {home}/dimo_jax/launch/tpu_worker.sh start --module=m -- --config=c"
    variables = {**cloud.variables, "HOME": str(home)}
    with start("bash", "-c", f"{command}; sleep 600", env=variables, start_new_session=True) as ssh:
        assert ssh.stdout.readline().endswith(" running\n")
        os.killpg(ssh.pid, signal.SIGHUP)
    state = ["bash", f"{home}/dimo_jax/launch/tpu_worker.sh", "status"]
    assert run(*state, env=variables).endswith(" running\n")
    cloud.end(3)
    wait_until(lambda: run(*state, env=variables).endswith(" ended 3\n"), "the program's end")
