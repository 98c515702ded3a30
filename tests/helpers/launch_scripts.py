"""For tests of launch/: running a script, with programs on PATH that record their arguments."""

import atexit
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = {
    "local_processes": [sys.executable, "-m", "launch.local_processes"],
    "slurm.sbatch": ["bash", str(LAUNCH / "slurm.sbatch")],
}

# What every script must hand on as it is.
AWKWARD = [
    "--config=configs/a b.py",
    "--workdir=gs://bucket/run",
    '--config.title=it\'s a "test" of $HOME, `id` and \\n',
    "",
    "--",
    "--glob=*",
    "--unicode=α→ß",
    "--two=first\nsecond",
    "--$(JOB_COMPLETION_INDEX)=$$ & done;",
]

# The stand-in for the program, or for any tool: appends its arguments to $RECORD, a line each.
RECORDER = """
import json, os, signal, sys
signal.alarm(300)  # no stand-in outlives its test for long
keep = {k: v for k, v in os.environ.items() if k.startswith(("JAX_", "CUDA_", "SLURM_", "OMPI_"))}
entry = {"name": os.path.basename(sys.argv[0]), "arguments": sys.argv[1:], "environment": keep}
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps(entry) + "\\n")
"""


def put(path, text, mode=0o644):
    """Writes a file that the process under test may be reading: it sees the old text or the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text)
    unfinished.chmod(mode)
    return unfinished.replace(path)


def install(folder, name, body=""):
    """An executable `name` in `folder` that records its call, then runs the Python in `body`."""
    # -S: a start in half the time
    text = f"#!/usr/bin/env -S {sys.executable} -S\n{RECORDER}{body}\n"
    return put(Path(folder) / name, text, mode=0o755)


def calls(record, name=None):
    """What was recorded so far, oldest first."""
    lines = record.read_text().splitlines() if record.exists() else []
    entries = [json.loads(line) for line in lines]
    return [entry for entry in entries if name in (None, entry["name"])]


def arguments(record, name=None):
    return [entry["arguments"] for entry in calls(record, name)]


def run(*words, status=0, **options):
    """A script (or any command) run to its end; its stdout, after checking its status."""
    done = start(*words, **options)
    out, err = done.communicate(timeout=120)
    assert done.returncode == status, err
    return (out, err) if status else out


# In the background or under nohup the tests ignore these, and so would what they start. Not a
# preexec_fn: that forks this process, which JAX, once it runs, warns of.
_HEEDING_SIGNALS = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def start(*words, **options):
    first, *rest = map(str, words)
    first = SCRIPTS.get(first, [first])
    process = subprocess.Popen(
        [sys.executable, "-SEc", _HEEDING_SIGNALS, *first, *rest],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    atexit.register(process.kill)  # where a test failed before its end; else it does nothing
    return process


def environment(tmp_path, *folders, **variables):
    """This process's environment with `folders` first on PATH and $RECORD in tmp_path."""
    path = os.pathsep.join([*map(str, folders), os.environ["PATH"]])
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "JAX_"))}
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "RECORD": str(tmp_path / "record")}
    return outside | own | variables


def wait_until(condition, what, seconds=120):
    """The condition's value once it is true; the process under test goes on meanwhile."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return value
