r"""Run the program on a Cloud TPU slice: one process on each host, kept alive over preemptions.

python -m launch.tpu_vm run --name=dimo --zone=us-central2-b --accelerator_type=v4-32 --spot -- \
    --config=configs/imagenet.py --workdir=gs://BUCKET/imagenet

run      create, install, start; then check every minute, and create and start again after each
         preemption, until the program has ended; interrupt it and type it again at will
create   request the slice as a queued resource, and wait until it is there
install  copy the committed files of this checkout to all workers, and install them
start    start the program on all workers, detached, with a log on each
status   the state of the slice, and of the program on each worker
logs     the end of the workers' logs
stop     SIGTERM to the program: it saves on all workers at the same step and leaves
delete   give the slice back

The work directory must be on gs://: a worker's disk ends with the worker.
"""

import argparse
import contextlib
import re
import shlex
import subprocess
import tempfile
from collections.abc import Sequence

from dimo_jax.common.errors import InputError
from launch.commands import COUNT, COUNT_OR_0, ROOT, Parser, Shell, launch, matching

COMMANDS = ["run", "create", "install", "start", "status", "logs", "stop", "delete"]
# The images that Google names for JAX, by the accelerator.
IMAGES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
NAME = matching(
    "[a-z]([a-z0-9-]*[a-z0-9])?",
    "a name: a letter first, then letters, digits and hyphens, all small",
)
SECONDS = matching(r"[0-9]+(\.[0-9]+)?", "a number of seconds", float)
# What the checkout on a worker says of it; without the checkout it is new.
WORKER_STATE = (
    "if [ -e dimo_jax/.venv/installed ]; then bash dimo_jax/launch/tpu_worker.sh status; "
    'else echo "worker $(hostname) new"; fi'
)


def read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the flags on a command line; an InputError refuses them."""
    parser = Parser("launch.tpu_vm", __doc__, COMMANDS)
    flag = parser.flag
    flag("name", "of the slice", NAME)
    flag("zone", "gcloud's")
    flag("project", "gcloud's")
    flag("accelerator_type", "as gcloud names it: v4-32, v5litepod-16, v5p-64, v6e-16")
    flag("runtime_version", "the image (the one for JAX on that type)")
    parser.switch("spot", "capacity that can be taken away at any time")
    flag("create_flag", "one more for gcloud ... queued-resources create", default=[])
    flag("ssh_flag", "one more for gcloud ... tpu-vm ssh and scp: --internal-ip", default=[])
    flag("ref", "the commit that install copies", default="HEAD")
    flag("python_version", "what install installs", default="3.12")
    flag("worker", "for logs", default="all")
    flag("lines", "for logs: how many", COUNT, 50)
    parser.switch("follow", "for logs: all as they come")
    flag("poll_s", "seconds between two checks of run and create", SECONDS, 60.0)
    flag("max_failures", "how often run starts a program that failed again", COUNT_OR_0, 3)
    flags = parser.read(arguments)
    parser.require(flags, "name", "zone")
    if flags.command in ("run", "create"):
        parser.require(flags, "accelerator_type")
        kind, _, size = flags.accelerator_type.partition("-")
        if kind in ("v5e", "v5lite"):
            raise InputError(f"--accelerator_type={kind}-{size}: gcloud's name is v5litepod-{size}")
        flags.runtime_version = flags.runtime_version or IMAGES.get(kind)
        if not flags.runtime_version:
            raise InputError(f"no image is known for {kind}-{size}; give --runtime_version")
    return flags


def program_state(workers: Sequence[str]) -> str:
    """Return the program's state on the slice, given its states on the workers.

    It is new, running, stopped, ended, refused (ended with 2: bad input), broken (with another), or
    idle: not started yet, or interrupted with its machine.
    """
    # A process that is left alone ends by itself; until then the workers are not all free.
    for state in ("running", "new", "stopped"):
        if state in workers:
            return state
    if "ended 2" in workers:
        return "refused"
    if any(re.match("ended [^0]", state) for state in workers):
        return "broken"
    return "ended" if {*workers} == {"ended 0"} else "idle"


class Slice:
    """A slice and the program on its workers, as `flags` say, through the commands of `shell`."""

    def __init__(self, flags: argparse.Namespace, shell: Shell):
        self.flags, self.shell = flags, shell
        self.where = [f"--zone={flags.zone}"]
        self.where += [f"--project={flags.project}"] if flags.project else []

    def tpus(self, *words: str) -> list[str]:
        """Return the words of a command of gcloud."""
        return ["gcloud", "compute", "tpus", *words, *self.where]

    def queued(self, action: str) -> list[str]:
        """Return the words of a command on the queued resource."""
        return self.tpus("queued-resources", action, self.flags.name)

    def remote(self, workers: str, command: str) -> list[str]:
        """Return the words that run a command in the workers' home directories."""
        ssh = self.tpus("tpu-vm", "ssh", self.flags.name)
        return [*ssh, f"--worker={workers}", *self.flags.ssh_flag, f"--command={command}"]

    def on(self, workers: str, *words: str) -> None:
        """Run a command of tpu_worker.sh on the workers."""
        command = shlex.join(["bash", "dimo_jax/launch/tpu_worker.sh", *words])
        self.shell.run(self.remote(workers, command))

    def requested(self) -> str:
        """Return the request's state: ACTIVE, WAITING_FOR_RESOURCES, ...; "" without one."""
        chosen = f"--filter=name~/queuedResources/{self.flags.name}$"
        listing = self.tpus("queued-resources", "list")
        return self.shell.read([*listing, chosen, "--format=value(state.state)"])

    def node(self) -> str:
        """Return the slice's own state: READY, PREEMPTED, ..."""
        describe = self.tpus("tpu-vm", "describe", self.flags.name)
        return self.shell.read([*describe, "--format=value(state)"])

    def workers(self) -> str:
        """Return a line `worker HOST STATE` for each worker."""
        return self.shell.read(self.remote("all", WORKER_STATE), quiet=True)

    def request(self) -> None:
        """Request the slice."""
        flags = self.flags
        machine = [f"--accelerator-type={flags.accelerator_type}"]
        machine += [f"--runtime-version={flags.runtime_version}", f"--node-id={flags.name}"]
        machine += ["--spot"] if flags.spot else []
        self.shell.run([*self.queued("create"), *machine, *flags.create_flag])

    def create(self) -> None:
        """Request the slice, and wait until it is there."""
        self.request()
        while (state := self.requested()) != "ACTIVE" and not self.flags.dry_run:
            if state in ("FAILED", "SUSPENDED"):
                raise SystemExit(f"the request ended as {state}")
            self.shell.note(f"{self.flags.name} is {state or 'requested'}")
            self.shell.sleep(self.flags.poll_s)

    def install(self) -> None:
        """Copy the commit to all workers, and install it there."""
        flags, run = self.flags, self.shell.run
        git = ["git", "-C", str(ROOT)]
        changed = [*git, "status", "--porcelain", "--untracked-files=no"]
        if flags.ref == "HEAD" and not flags.dry_run and self.shell.read(changed):
            self.shell.note("what is not committed stays here; the workers get HEAD")
        with tempfile.TemporaryDirectory() as folder:
            archive = f"{'/tmp' if flags.dry_run else folder}/dimo_jax.tar.gz"
            run([*git, "archive", "--format=tar.gz", f"--output={archive}", flags.ref])
            copy = self.tpus("tpu-vm", "scp", archive, f"{flags.name}:")
            run([*copy, "--worker=all", *flags.ssh_flag])
        run(self.remote("all", "mkdir -p dimo_jax && tar -xzf dimo_jax.tar.gz -C dimo_jax"))
        self.on("all", "install", f"--python_version={flags.python_version}")

    def start(self) -> None:
        """Start the program on all workers."""
        self.on("all", "start", f"--module={self.flags.module}", "--", *self.flags.program)

    def status(self) -> None:
        """Print the state of the slice, and of the program on each worker."""
        state = self.requested()
        if self.flags.dry_run:
            self.workers()
            return
        print(f"slice {self.flags.name} {state or 'absent'}", flush=True)
        if state == "ACTIVE":
            print(self.workers())

    def logs(self) -> None:
        """Print the end of the workers' logs."""
        following = self.flags.follow and self.flags.command == "logs"
        how = "--follow" if following else f"--lines={self.flags.lines}"
        self.on(self.flags.worker, "logs", how)

    def stop(self) -> None:
        """Send SIGTERM to the program."""
        self.on("all", "stop")

    def delete(self) -> None:
        """Give the slice back: in a run after a preemption, before it all begins again."""
        self.shell.run([*self.queued("delete"), "--force", "--quiet"])

    def find(self) -> str:
        """Return absent, failed, lost, waiting or unreachable, or the program's state."""
        try:
            state = self.requested()
            if state != "ACTIVE":
                return {"": "absent", "SUSPENDED": "lost", "FAILED": "failed"}.get(state, "waiting")
            node = self.node()
            if node != "READY":
                gone = node in ("PREEMPTED", "TERMINATED", "STOPPED")
                return "lost" if gone else "waiting"
            states = re.findall(r"^worker \S+ (.+)$", self.workers(), re.MULTILINE)
            return program_state(states) if states else "unreachable"
        except subprocess.CalledProcessError:
            return "unreachable"

    def run(self) -> None:
        """Do what is due, again and again, until the program has ended on all workers.

        Nothing is remembered but the failures: each round finds out, and does the one thing. A dry
        run has one round, with all that may be due.
        """
        if self.flags.dry_run:
            steps = self.create, self.node, self.install, self.start, self.status, self.delete
            for step in steps:
                print(f"# {step.__doc__}")
                step()
            return
        flags, note = self.flags, self.shell.note
        before, failures, was_requested = "", 0, False
        while (found := self.find()) not in ("ended", "stopped"):
            if found != before:
                note(f"{flags.name}: {found}")
            before = found
            try:
                match found:
                    case "absent":
                        self.request()
                    case "lost":
                        self.delete()
                    case "failed":
                        describe = shlex.join(self.queued("describe"))
                        raise SystemExit(f"the request failed; see: {describe}")
                    case "new":
                        self.install()
                        self.start()
                    case "idle":
                        self.start()
                    case "refused" | "broken":
                        with contextlib.suppress(subprocess.CalledProcessError):
                            self.logs()
                        failures += 1
                        if found == "refused" or failures > flags.max_failures:
                            raise SystemExit(
                                "the program failed, and is not started again; its last lines are "
                                "above"
                            )
                        self.start()
            except subprocess.CalledProcessError:
                # The first request fails for what is wrong with it; a later one is repeated.
                if found == "absent" and not was_requested:
                    raise
            was_requested = was_requested or found == "absent"
            self.shell.sleep(flags.poll_s)
        note(
            f"the program has {found}; the slice is yours, and charged, until: "
            f"python -m launch.tpu_vm delete --name={flags.name} {' '.join(self.where)}"
        )


def main(arguments: Sequence[str], shell: Shell | None = None) -> None:
    """Run or print what a command line says."""
    flags = read_flags(arguments)
    shell = shell or Shell(flags.dry_run)
    on_disk = not any(word.startswith("--workdir=gs://") for word in flags.program)
    if flags.command in ("run", "start") and on_disk:
        shell.note("the work directory is not on gs://; a preemption takes what is on a worker")
    getattr(Slice(flags, shell), flags.command)()


if __name__ == "__main__":
    launch(main)
