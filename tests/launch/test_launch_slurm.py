"""slurm.sbatch: its logic with stand-ins for SLURM's commands, then a real SLURM of one node."""

import getpass
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

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

ROOT = LAUNCH.parent
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3", "SLURM_CPUS_ON_NODE": "26"}


@pytest.fixture
def cluster(tmp_path):
    """(environment of a batch script, record) with stand-ins for srun, scancel and scontrol."""
    for name in ("srun", "scancel", "scontrol"):
        install(tmp_path / "bin", name)
    return environment(tmp_path, tmp_path / "bin", **JOB), tmp_path / "record"


def batch(*words):
    # As SLURM does: a copy of the script, run in the folder of submission.
    return ["slurm.sbatch", "--python=program", *words, "--", "--config=c"]


@pytest.mark.parametrize(
    "flags, gpus, layout",
    [
        ([], "8", ["--ntasks=24", "--ntasks-per-node=8", "--cpus-per-task=3"]),
        (["--tasks=node"], "8", ["--ntasks=3", "--ntasks-per-node=1", "--cpus-per-task=26"]),
        ([], "", ["--ntasks=3", "--ntasks-per-node=1", "--cpus-per-task=26"]),
    ],
)
def test_the_tasks_fill_the_allocation(cluster, flags, gpus, layout):
    variables, record = cluster
    own = {"SLURM_GPUS_ON_NODE": gpus} if gpus else {}
    run(*batch(*flags), env=variables | own, cwd=ROOT)
    (words,) = arguments(record, "srun")
    devices = ["env", "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7"] if flags else []
    assert words == [
        *(*layout, "--label", "--kill-on-bad-exit=1", *devices),
        *("program", "-m", "dimo_jax.main", "--config=c"),
    ]


@pytest.mark.parametrize("status", [0, 3])
def test_without_a_signal_the_job_ends_as_the_program_did(cluster, tmp_path, status):
    variables, record = cluster
    install(tmp_path / "bin", "srun", f"sys.exit({status})")
    run(*batch(), env=variables, cwd=ROOT, status=status)
    assert arguments(record, "scontrol") == [["show", "job", "7"]]
    assert not calls(record, "scancel")


def test_at_the_notice_the_tasks_save_before_the_job_is_queued_again(cluster, tmp_path):
    variables, record = cluster
    srun = """
import time
print("ready", flush=True)
while not os.path.exists(os.environ["RECORD"] + ".term"):
    time.sleep(0.02)
time.sleep(0.3)
print("saved", flush=True)
"""
    install(tmp_path / "bin", "srun", srun)
    install(tmp_path / "bin", "scancel", 'open(os.environ["RECORD"] + ".term", "w")')
    shown = "PreemptEligibleTime=2026-11-21 PreemptTime=None"
    install(tmp_path / "bin", "scontrol", f'if "show" in sys.argv: print("{shown}")')
    process = start(*batch(), env=variables, cwd=ROOT)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "saved\n"), err
    assert arguments(record, "scancel") == [["--signal=TERM", "7"]]
    assert arguments(record, "scontrol")[-1] == ["requeue", "7"]
    assert calls(record)[-1]["name"] == "scontrol"


def test_a_preemption_that_only_the_tasks_heard_of_queues_the_job_again(cluster, tmp_path):
    variables, record = cluster
    install(tmp_path / "bin", "scontrol", 'print("   PreemptTime=2026-11-21T18:17:12 Power=")')
    run(*batch(), env=variables, cwd=ROOT)
    assert arguments(record, "scontrol") == [["show", "job", "7"], ["requeue", "7"]]


def test_submitted_elsewhere_it_says_where_to_go(cluster, tmp_path):
    _, err = run(*batch(), env=cluster[0], cwd=tmp_path, status=2)
    assert f"{tmp_path} is not the checkout" in err


CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=1000 Gres=gpu:2
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=60 PreemptMode=REQUEUE
PartitionName=high Nodes={host} PriorityTier=2 PreemptMode=OFF
"""
SBIN = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
DAEMONS = {name: shutil.which(name, path=SBIN) for name in ("munged", "slurmctld", "slurmd")}

# Ends when $RECORD.end exists, or at SIGTERM as the program does once it has saved: with 0.
PROGRAM = """
import signal, time
signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
print("hello from", os.environ["SLURM_PROCID"], flush=True)
end = os.environ["RECORD"] + ".end"
while not signals and not os.path.exists(end):
    time.sleep(0.05)
if signals:
    time.sleep(0.5)
    print("saved after", len(signals), flush=True)
else:
    sys.exit(int(open(end).read()))
"""


class Slurm:
    """A SLURM of one node on this machine: 8 CPUs and 2 GPUs, as it believes."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            second.bind(("127.0.0.1", 0))
            ports = first.getsockname()[1], second.getsockname()[1]
        host = socket.gethostname().partition(".")[0]
        (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
        (folder / "munge.key").chmod(0o600)
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        config = CONFIG.format(host=host, user=getpass.getuser(), folder=folder, ports=ports)
        (folder / "slurm.conf").write_text(config)
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        self.variables = {"SLURM_CONF": str(folder / "slurm.conf")}
        kept = ("key-file=munge.key", "socket=munge.socket", "pid-file=munge.pid")
        kept += ("log-file=munge.log", "seed-file=munge.seed")
        names = [f"--{k}={folder}/{v}" for k, _, v in (x.partition("=") for x in kept)]
        self.processes = []
        self._start(DAEMONS["munged"], "--foreground", "--force", *names)
        wait_until((folder / "munge.socket").exists, "munged")
        self._start(DAEMONS["slurmctld"], "-D", "-i")
        self._start(DAEMONS["slurmd"], "-D")
        wait_until(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%T"), "an idle node")

    def _start(self, *words):
        with open(self.folder / "daemons.log", "a") as log:
            self.processes.append(
                subprocess.Popen(words, env=os.environ | self.variables, stdout=log, stderr=log)
            )

    def logs(self):
        return "".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))

    def ask(self, *words):
        done = subprocess.run(
            words, env=os.environ | self.variables, capture_output=True, text=True, cwd=ROOT
        )
        return done.stdout.strip()

    def stop(self):
        self.ask("scancel", "--partition=low,high", "--full")
        time.sleep(0.5)
        for process in reversed(self.processes):
            process.terminate()
            process.wait(timeout=20)


@pytest.fixture(scope="module")
def slurm():
    missing = [name for name, path in DAEMONS.items() if path is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here; Debian: apt-get install slurm-wlm")
    # A socket's path may have 107 characters: not pytest's own folder.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = Slurm(Path(folder))
        try:
            yield cluster
        finally:
            cluster.stop()


class Job:
    """One submission of slurm.sbatch."""

    def __init__(self, slurm, tmp_path):
        self.slurm, self.record, self.log = slurm, tmp_path / "record", tmp_path / "log"
        self.program = install(tmp_path, "program", PROGRAM)

    def submit(self, *flags, script=(), arguments=("--config=c",)):
        words = ["--gpus-per-node=2", f"--output={self.log}", *flags, "launch/slurm.sbatch"]
        words += [*script, f"--python={self.program}", "--", *arguments]
        variables = os.environ | self.slurm.variables | {"RECORD": str(self.record)}
        done = subprocess.run(
            ["sbatch", "--parsable", *words],
            env=variables,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        self.number = done.stdout.strip()

    def end(self, status):
        put(f"{self.record}.end", str(status))

    def wait_for_starts(self, count):
        wait_until(lambda: len(calls(self.record)) == count, f"{count} starts of the program")
        wait_until(lambda: self.log.read_text().count("hello from") == count, "their first line")

    def wait_for(self, **fields):
        def fits():
            shown = self.slurm.ask("scontrol", "show", "job", self.number).split()
            return all(f"{name}={value}" in shown for name, value in fields.items())

        wait_until(fits, f"job with {fields}")

    def begin_again(self):
        """Without the two minutes that SLURM waits with a job that comes again, and with more time.

        The two minutes are for the end of the first start to arrive, or it ends the second: here
        three seconds are enough.
        """
        time.sleep(3)
        self.slurm.ask(
            "scontrol", "update", f"JobId={self.number}", "StartTime=now", "TimeLimit=10"
        )


@pytest.fixture
def job(slurm, tmp_path):
    job = Job(slurm, tmp_path)
    yield job
    slurm.ask("scancel", job.number)
    wait_until(lambda: not slurm.ask("squeue", "--noheader"), "an empty queue")


def test_slurm_runs_a_task_for_each_gpu(job):
    job.submit(arguments=AWKWARD)
    job.wait_for_starts(2)
    job.end(0)
    job.wait_for(JobState="COMPLETED", Restarts=0)
    tasks = sorted(calls(job.record), key=lambda call: call["environment"]["SLURM_PROCID"])
    for number, task in enumerate(tasks):
        assert task["arguments"] == ["-m", "dimo_jax.main", *AWKWARD]
        # What JAX needs to find the others, and its GPU among those it sees.
        found = task["environment"]
        assert found["SLURM_PROCID"] == found["SLURM_LOCALID"] == str(number)
        assert found["SLURM_NTASKS"] == "2"
        assert found["SLURM_STEP_NODELIST"] == found["SLURM_JOB_NODELIST"]
        assert found["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert found["SLURM_CPUS_PER_TASK"] == "4"


def test_slurm_runs_one_task_a_node_and_passes_its_failure_on(job):
    job.submit(script=["--tasks=node"])
    job.wait_for_starts(1)
    job.end(3)
    job.wait_for(JobState="FAILED", ExitCode="3:0", Restarts=0)
    (task,) = calls(job.record)
    assert task["environment"]["SLURM_NTASKS"] == "1"
    assert task["environment"]["JAX_LOCAL_DEVICE_IDS"] == "0,1"


@pytest.mark.parametrize(
    "time_limit",
    # SLURM looks at the limits twice a minute; the tasks must be there by then.
    [False, pytest.param(True, marks=pytest.mark.slow)],
)
def test_at_slurms_notice_the_job_saves_and_comes_again(job, slurm, time_limit):
    job.submit(*(["--time=1", "--signal=B:USR1@35"] if time_limit else []))
    job.wait_for_starts(2)
    if not time_limit:
        slurm.ask("scancel", "--batch", "--signal=USR1", job.number)
    job.wait_for(JobState="PENDING", Restarts=1)
    assert job.log.read_text().count("saved after 1") == 2
    job.begin_again()
    job.wait_for_starts(4)
    job.end(0)
    job.wait_for(JobState="COMPLETED")
    assert {json.dumps(a) for a in arguments(job.record)} == {
        json.dumps(["-m", "dimo_jax.main", "--config=c"])
    }


def test_a_preempted_job_saves_and_comes_again(job, slurm):
    job.submit("--partition=low")
    job.wait_for_starts(2)
    slurm.ask("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=true")
    job.wait_for(JobState="PENDING", Restarts=1)
    assert job.log.read_text().count("saved after 1") == 2


def test_sigterm_to_the_tasks_alone_ends_the_job_for_good(job, slurm):
    job.submit()
    job.wait_for_starts(2)
    slurm.ask("scancel", "--signal=TERM", job.number)
    job.wait_for(JobState="COMPLETED", Restarts=0)
    assert job.log.read_text().count("saved after 1") == 2
