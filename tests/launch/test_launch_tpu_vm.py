"""tpu_vm.sh against a cloud of two workers that the test plays: folders, and its own gcloud."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.helpers.launch_scripts import (
    AWKWARD,
    LAUNCH,
    arguments,
    calls,
    environment,
    install,
    put,
    run,
    start,
    wait_until,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tpu_worker.sh reads /proc")

WHERE = ["--zone=us-central2-b", "--project=p"]
NAMED = ["--name=dimo", *WHERE]
RUN = ["tpu_vm.sh", "run", *NAMED, "--accelerator_type=v4-16", "--poll_s=0.4"]
LIST = ["compute", "tpus", "queued-resources", "list", *WHERE]
WORKERS = ["worker-0", "worker-1"]

# gcloud: $CLOUD/slice holds the queued resource's state, $CLOUD/node the slice's; a worker is a
# folder that is its home. A slice becomes ACTIVE when it is asked for the second time.
GCLOUD = """
import pathlib, shutil, subprocess
cloud = pathlib.Path(os.environ["CLOUD"])
words = sys.argv[3:]
flags = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
slice_, node = cloud / "slice", cloud / "node"
homes = sorted(cloud.glob("worker-*"))
def home_environment(home):
    own = {k: v for k, v in os.environ.items() if k != "DIMO"}
    return {**own, "HOME": str(home), "PATH": f"{cloud}/bin:" + own["PATH"]}
if words[:2] == ["queued-resources", "list"]:
    print(slice_.read_text() if slice_.exists() else "")
    if slice_.exists() and slice_.read_text() == "WAITING_FOR_RESOURCES":
        slice_.write_text("ACTIVE")
        node.write_text("READY")
        for number in range(2):
            (cloud / f"worker-{number}").mkdir()
elif words[:2] == ["queued-resources", "create"]:
    if slice_.exists():
        sys.exit("ALREADY_EXISTS")
    slice_.write_text("WAITING_FOR_RESOURCES")
elif words[:2] == ["queued-resources", "delete"]:
    slice_.unlink()
    for home in homes:
        home.rename(cloud / f"gone-{os.getpid()}-{home.name}")
elif words[:2] == ["tpu-vm", "describe"]:
    print(node.read_text())
elif words[:2] == ["tpu-vm", "scp"]:
    for home in homes:
        shutil.copy(words[2], home / words[3].partition(":")[2])
elif words[:2] == ["tpu-vm", "ssh"]:
    chosen = homes if flags["--worker"] == "all" else [homes[int(flags["--worker"])]]
    done = [
        subprocess.run(["bash", "-c", flags["--command"]], cwd=home, env=home_environment(home))
        for home in chosen
    ]
    sys.exit(max(each.returncode for each in done))
"""

# A worker's python3: "uv venv" puts a stand-in of the program where the environment's python is.
PYTHON3 = """
import pathlib
if sys.argv[1:4] == ["-m", "uv", "venv"]:
    python = pathlib.Path(".venv/bin/python")
    python.parent.mkdir(parents=True)
    python.write_text(pathlib.Path(os.environ["CLOUD"], "program").read_text())
    python.chmod(0o755)
"""

# Leaves with the status in $CLOUD/status, or with 0 at SIGTERM, as the program once it has saved.
PROGRAM = """
import pathlib, signal, time
status = pathlib.Path(os.environ["CLOUD"], "status")
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(0)))
print("hello from the program", flush=True)
while not status.exists():
    time.sleep(0.02)
sys.exit(int(status.read_text()))
"""


class Cloud:
    """The test's side of it."""

    def __init__(self, tmp_path):
        self.folder = tmp_path / "cloud"
        install(tmp_path / "bin", "gcloud", GCLOUD)
        install(self.folder / "bin", "python3", PYTHON3)
        install(self.folder, "program", PROGRAM)
        self.variables = environment(tmp_path, tmp_path / "bin", CLOUD=str(self.folder))
        self.record = tmp_path / "record"
        self.checkout = tmp_path / "checkout"
        shutil.copytree(LAUNCH, self.checkout / "launch")
        git = ["git", "-C", self.checkout, "-c", "user.name=n", "-c", "user.email=e"]
        for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=all"]):
            subprocess.run([*git, *words], check=True, env=self.variables)

    def run(self, *words, **options):
        return run(*words, env=self.variables, script_folder=self.checkout / "launch", **options)

    def start(self, *words):
        return start(*words, env=self.variables, script_folder=self.checkout / "launch")

    def programs(self):
        """The arguments of each start of the program so far."""
        return [call["arguments"][2:] for call in calls(self.record, "python")]

    def wait_for_starts(self, count):
        wait_until(lambda: len(self.programs()) == count, f"{count} starts of the program")

    def runs_everywhere(self):
        states = [self.folder / worker / "dimo_jax_run" for worker in WORKERS]
        return all((s / "program").exists() and not (s / "ended").exists() for s in states)

    def wait_for_requests(self, count):
        wait_until(
            lambda: len(self.gcloud("queued-resources", "create")) == count, f"{count} requests"
        )

    def state(self, name, value):
        put(self.folder / name, value)

    def end(self, status):
        self.state("status", str(status))

    def gcloud(self, *words):
        """The gcloud calls that begin like this."""
        return [a for a in arguments(self.record, "gcloud") if a[2 : 2 + len(words)] == [*words]]

    def process_of(self, worker, name):
        """Its number, once it is written down: a program records its start before that."""
        path = self.folder / worker / "dimo_jax_run" / name
        return int(wait_until(lambda: path.exists() and path.read_text(), f"{worker}'s {name}"))

    def signal_machine(self, worker, number):
        """What a machine that goes down sends to all processes on it."""
        for pid in [self.process_of(worker, name) for name in ("supervisor", "program")]:
            os.kill(pid, number)


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.end(0)  # whatever still runs there


def test_run_creates_installs_starts_and_ends_with_the_program(cloud):
    process = cloud.start(*RUN, "--spot", "--create_flag=--network=n", "--", *AWKWARD)
    cloud.wait_for_starts(2)
    cloud.end(0)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert cloud.programs() == [AWKWARD, AWKWARD]
    assert cloud.gcloud("queued-resources", "create") == [
        [
            *("compute", "tpus", "queued-resources", "create", "dimo", "--node-id=dimo", *WHERE),
            *("--accelerator-type=v4-16", "--runtime-version=tpu-ubuntu2204-base", "--spot"),
            "--network=n",
        ]
    ]
    assert cloud.gcloud("queued-resources", "list")[0] == [
        *LIST,
        "--filter=name~/queuedResources/dimo$",
        "--format=value(state.state)",
    ]
    assert not cloud.gcloud("queued-resources", "delete")
    assert "the slice is yours, and charged, until: tpu_vm.sh delete --name=dimo" in err
    assert arguments(cloud.record, "python3")[-1] == [
        *("-m", "uv", "pip", "install", "--quiet", "--python=.venv/bin/python"),
        *("--constraint=constraints.txt", "--editable", ".[tpu]"),
    ]


def test_a_preempted_slice_is_replaced_and_the_same_command_started(cloud):
    process = cloud.start(*RUN, "--", "--config=c")
    ways = [("slice", "SUSPENDING", "SUSPENDED"), ("node", "STOPPING", "PREEMPTED")]
    for round_, (name, before, after) in enumerate(ways):
        wait_until(cloud.runs_everywhere, "the program on both workers")
        cloud.state(name, before)
        for worker in WORKERS:
            cloud.signal_machine(worker, signal.SIGTERM)
        cloud.state(name, after)
        cloud.wait_for_requests(round_ + 2)
    wait_until(cloud.runs_everywhere, "the program on both workers")
    cloud.end(0)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert {*map(tuple, cloud.programs())} == {("--config=c",)}
    assert len(cloud.gcloud("queued-resources", "create")) == 3
    assert cloud.gcloud("queued-resources", "delete") == 2 * [
        ["compute", "tpus", "queued-resources", "delete", "dimo", *WHERE, "--force", "--quiet"]
    ]


def test_a_machine_that_went_down_under_the_program_is_no_end_of_the_run(cloud):
    # Maintenance: the worker comes back with its disk. Its program saved and left with 0, and so
    # did the other's, which then counts as ended.
    process = cloud.start(*RUN, "--", "--config=c")
    cloud.wait_for_starts(2)
    cloud.signal_machine("worker-0", signal.SIGTERM)
    os.kill(cloud.process_of("worker-1", "program"), signal.SIGTERM)
    cloud.wait_for_starts(4)
    # Power lost: nothing was written down.
    for worker in WORKERS:
        cloud.signal_machine(worker, signal.SIGKILL)
    cloud.wait_for_starts(6)
    cloud.end(0)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(cloud.gcloud("queued-resources", "create")) == 1
    assert len(cloud.gcloud("tpu-vm", "scp")) == 1


@pytest.mark.parametrize("status, starts", [(1, 2 * 3), (2, 2 * 1)])
def test_a_failing_program_is_started_again_so_often_and_bad_input_never(cloud, status, starts):
    cloud.end(status)
    out, err = cloud.run(*RUN, "--max_failures=2", "--", "--config=c", status=1)
    assert len(cloud.programs()) == starts
    assert "is not started again" in err
    assert out.count("hello from the program") >= starts


def test_a_refused_request_ends_run(cloud):
    cloud.state("slice", "FAILED")
    _, err = cloud.run(*RUN, "--", "--config=c", status=1)
    assert "the request failed" in err
    assert not cloud.gcloud("queued-resources", "create")


def test_run_waits_while_gcloud_or_a_worker_does_not_answer(cloud):
    process = cloud.start(*RUN, "--", "--config=c")
    cloud.wait_for_starts(2)
    install(cloud.folder.parent / "bin", "gcloud", 'sys.exit("no network")')
    before = len(calls(cloud.record, "gcloud"))
    wait_until(lambda: len(calls(cloud.record, "gcloud")) > before + 3, "three questions")
    assert process.poll() is None
    install(cloud.folder.parent / "bin", "gcloud", GCLOUD)
    cloud.end(0)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "unreachable" in err
    assert len(cloud.programs()) == 2


def test_the_steps_one_by_one(cloud):
    cloud.run("tpu_vm.sh", "create", *NAMED, "--accelerator_type=v6e-8", "--poll_s=0.1")
    assert "--runtime-version=v2-alpha-tpuv6e" in cloud.gcloud("queued-resources", "create")[0]
    status = ["tpu_vm.sh", "status", *NAMED]
    host = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
    assert cloud.run(*status).splitlines() == ["slice dimo ACTIVE", *2 * [f"worker {host} new"]]
    cloud.run("tpu_vm.sh", "install", *NAMED)
    assert cloud.run(*status).splitlines()[1:] == 2 * [f"worker {host} idle"]

    begin = ["tpu_vm.sh", "start", *NAMED, "--module=dimo_jax.benchmark", "--", *AWKWARD]
    cloud.run(*begin)
    cloud.wait_for_starts(2)
    assert calls(cloud.record, "python")[0]["arguments"] == ["-m", "dimo_jax.benchmark", *AWKWARD]
    assert cloud.run(*status).splitlines()[1:] == 2 * [f"worker {host} running"]
    _, err = cloud.run(*begin, status=2)
    assert "runs the program already" in err
    logs = ["tpu_vm.sh", "logs", *NAMED, "--lines=1"]
    assert cloud.run(*logs) == 2 * "hello from the program\n"
    assert cloud.run(*logs, "--worker=1") == "hello from the program\n"

    cloud.run("tpu_vm.sh", "stop", *NAMED)
    wait_until(lambda: "running" not in cloud.run(*status), "the program's end")
    assert cloud.run(*status).splitlines()[1:] == 2 * [f"worker {host} stopped"]
    assert "saved" in (cloud.folder / "worker-0/dimo_jax_run/log").read_text()
    # Stopped by hand, run leaves it so.
    cloud.run(*RUN, "--", "--config=c")
    assert len(cloud.programs()) == 2
    cloud.run("tpu_vm.sh", "delete", *NAMED)
    assert cloud.run(*status) == "slice dimo absent\n"


def test_the_workers_get_the_commit_asked_for(cloud):
    (cloud.checkout / "launch/common.sh").write_text("exit 3\n")  # not committed
    cloud.state("slice", "ACTIVE")
    for worker in WORKERS:
        (cloud.folder / worker).mkdir()
    script = cloud.checkout / "launch/tpu_vm.sh"
    shutil.copy(LAUNCH / "common.sh", cloud.checkout / "launch/common.sh")
    script.write_text(script.read_text() + "# changed\n")
    _ = cloud.run("tpu_vm.sh", "install", *NAMED, "--python_version=3.13")
    installed = cloud.folder / "worker-1/dimo_jax/launch/tpu_vm.sh"
    assert not installed.read_text().endswith("# changed\n")
    assert any("--python=3.13" in call for call in arguments(cloud.record, "python3"))


def test_the_program_outlives_the_connection(cloud):
    # gcloud's ssh ends, and with it its process group; the program must go on.
    home = cloud.folder / "worker-0"
    shutil.copytree(LAUNCH, home / "dimo_jax/launch")
    install(home / "dimo_jax/.venv/bin", "python", PROGRAM)
    command = f"bash {home}/dimo_jax/launch/tpu_worker.sh start -- --config=c"
    variables = {**cloud.variables, "HOME": str(home)}
    with start("bash", "-c", f"{command}; sleep 600", env=variables, start_new_session=True) as ssh:
        assert ssh.stdout.readline().endswith(" running\n")
        os.killpg(ssh.pid, signal.SIGHUP)
    state = ["bash", f"{home}/dimo_jax/launch/tpu_worker.sh", "status"]
    assert run(*state, env=variables).endswith(" running\n")
    cloud.end(0)
    wait_until(lambda: run(*state, env=variables).endswith(" ended 0\n"), "the program's end")
