"""A cloud that a test plays for launch.tpu_vm: gcloud, and two workers that are folders."""

import os
import shutil
import subprocess
import time

from launch.commands import Shell
from tests.helpers.launch_scripts import calls, environment, install, wait_until

WHERE = ["--zone=us-central2-b", "--project=p"]
WORKERS = ["worker-0", "worker-1"]

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


def until(condition):
    while not condition():
        yield


class Cloud(Shell):
    """What answers in place of gcloud; `events` goes on at each pause between two checks.

    A slice becomes ACTIVE when it is listed for the second time; a worker is a folder, its home.
    """

    def __init__(self, tmp_path):
        super().__init__()
        self.folder, self.record = tmp_path / "cloud", tmp_path / "record"
        install(self.folder / "bin", "python3", PYTHON3)
        install(self.folder, "program", PROGRAM)
        self.variables = environment(tmp_path, self.folder / "bin", CLOUD=str(self.folder))
        self.queued, self.node = "", ""  # the states of the request and of the slice
        self.events, self.pauses, self.notes, self.gcloud_calls = iter(()), 0, [], []

    def note(self, text):
        self.notes.append(text)

    def sleep(self, seconds):
        next(self.events, None)
        self.pauses += 1
        assert self.pauses < 500, self.notes
        time.sleep(0.05)

    def run(self, words, stdin=None):
        print(self.read(words))

    def read(self, words, quiet=False):
        if words[0] == "git":
            return super().read(words)
        assert words[:3] == ["gcloud", "compute", "tpus"] and {*WHERE} < {*words}
        self.gcloud_calls.append(words[3:])
        return getattr(self, words[4])(*words[5:]) or ""

    def list(self, *words):
        found = self.queued
        if found == "WAITING_FOR_RESOURCES":
            self.provide()
        return found

    def provide(self):
        self.queued, self.node = "ACTIVE", "READY"
        for worker in WORKERS:
            (self.folder / worker).mkdir(exist_ok=True)

    def create(self, *words):
        assert not self.queued
        self.queued = "WAITING_FOR_RESOURCES"

    def delete(self, *words):
        self.queued = ""
        for worker in WORKERS:
            (self.folder / worker).rename(self.folder / f"gone-{worker}-{len(self.gcloud_calls)}")

    def describe(self, *words):
        if isinstance(self.node, Exception):
            raise self.node
        return self.node

    def scp(self, source, target, *words):
        for worker in WORKERS:
            shutil.copy(source, self.folder / worker / target.partition(":")[2])

    def ssh(self, name, *words):
        flags = dict(word.split("=", 1) for word in words if "=" in word)
        chosen = WORKERS if flags["--worker"] == "all" else [WORKERS[int(flags["--worker"])]]
        printed = ""
        for home in [self.folder / worker for worker in chosen]:
            done = subprocess.run(
                ["bash", "-c", flags["--command"]],
                cwd=home,
                env=self.variables | {"HOME": str(home)},
                capture_output=True,
                text=True,
            )
            printed += done.stdout
            if done.returncode:
                raise subprocess.CalledProcessError(done.returncode, words, stderr=done.stderr)
        return printed.strip()

    def called(self, *words):
        """The gcloud calls that begin like this."""
        return [call for call in self.gcloud_calls if call[: len(words)] == [*words]]

    def programs(self):
        """The arguments of each start of the program so far."""
        return [call["arguments"][2:] for call in calls(self.record, "python")]

    def runs_everywhere(self):
        states = [self.folder / worker / "dimo_jax_run" for worker in WORKERS]
        return all((s / "program").exists() and not (s / "ended").exists() for s in states)

    def end(self, status):
        (self.folder / "status").write_text(str(status))

    def process_of(self, worker, name):
        """Its number, once it is written down: a program records its start before that."""
        path = self.folder / worker / "dimo_jax_run" / name
        return int(wait_until(lambda: path.exists() and path.read_text(), f"{worker}'s {name}"))

    def signal_machine(self, worker, number):
        """What a machine that goes down sends to all processes on it."""
        for pid in [self.process_of(worker, name) for name in ("supervisor", "program")]:
            os.kill(pid, number)
