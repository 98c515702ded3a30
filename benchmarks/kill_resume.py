"""Kills the digits run at random moments and starts it again; says whether anything is different.

    python benchmarks/kill_resume.py --kills=20 --directory=/tmp/kills
    python benchmarks/kill_resume.py --tokens=tokens/photos --tokenizer=bundles/patches

One run is left alone. Others are killed (SIGKILL) a random time after each start, the time drawn
uniformly from the length of a whole run, and started again with the same command until they are
done. Then every run must end in the first one's parameters, bit for bit, and in its lines of
metrics; and every checkpoint that a killed run offered must be the first run's of that step. Prints
one line for each start; the exit status is 1 where something differs.

The config is configs/digits.py:patch, or configs/pictures.py:tiny on a folder of tokens, shrunk to
seconds. Processes are forked from this one before
JAX has a backend, so that the imports, in which nothing could be lost, are paid for once.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import orbax.checkpoint as ocp

import dimo_jax.main
from dimo_jax import cli
from dimo_jax.common import trees
from dimo_jax.training import metrics

DIGITS = ["--config=configs/digits.py:patch"]
SMALL = [
    "--config.fast_compile=True",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.heads=2",
    "--config.model.mlp_dim=16",
    "--config.pretrain.num_steps=120",
    "--config.pretrain.batch_size=8",
    "--config.pretrain.optimizer.warmup_steps=2",
    "--config.distill.num_steps=120",
    "--config.distill.batch_size=8",
    "--config.distill.generator.optimizer.warmup_steps=2",
    "--config.distill.auxiliary.optimizer.warmup_steps=2",
    "--config.checkpoint.save_every_steps=10",
    "--config.logging.log_every_steps=5",
    "--config.logging.images_every_steps=0",
    "--config.logging.tensorboard=False",
    "--config.classifier.num_steps=20",
    "--config.evaluation.num_samples=20",
    "--config.evaluation.seeds=(0,)",
    "--config.evaluation.teacher_steps=(2,)",
    "--config.evaluation.sweep_steps=(2,)",
    "--config.evaluation.sweep_num_samples=10",
    "--config.evaluation.guidances=(1.0,)",
    "--config.evaluation.choice_temperatures=(4.5,)",
    "--config.evaluation.random_order=False",
    "--config.evaluation.num_pictures=10",
    "--config.evaluation.batch_size=20",
]
STAGES = ("pretrain", "distill")


def started(workdir: Path, log: Path, *config: str) -> int:
    """Return the process id of a run."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["main", *config, *SMALL, f"--workdir={workdir}"]
    cli.run(dimo_jax.main.main, dimo_jax.main.FLAGS)


def ended(pid: int, seconds: float) -> bool:
    """Return whether the process ends by itself in that time.

    Else it is killed. A failure raises.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            if status:
                raise SystemExit(f"a run ended with status {os.waitstatus_to_exitcode(status)}")
            return True
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) != -signal.SIGKILL


def offered(workdir: Path) -> dict[str, str]:
    """{"stage/step": fingerprint} of all finished checkpoints, read in a process of its own."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        with os.fdopen(writing, "w") as pipe:
            found = {}
            for path in sorted(workdir.glob("checkpoints/*/*")):
                if path.name.isdigit():
                    with ocp.StandardCheckpointer() as checkpointer:
                        tree = checkpointer.restore(path / "state")
                    found[f"{path.parent.name}/{path.name}"] = trees.fingerprint(tree)
            json.dump(found, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def result(workdir: Path) -> dict:
    """Return what must be the same at the end of every run."""
    lines = [
        {name: x for name, x in line.items() if not name.startswith("time/")}
        for line in metrics.read(workdir)
    ]
    report = workdir / "report" / "results.json"  # none of a folder of tokens
    hashes = json.loads(report.read_text())["hashes"] if report.exists() else {}
    parts = {
        name: (workdir / name / "params.msgpack").read_bytes() for name in ("teacher", "export")
    }
    return {"lines": lines, "hashes": hashes, **parts}


def main() -> None:
    """Run, kill and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how many processes are killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--directory", help="of the runs; default: a temporary one")
    parser.add_argument("--tokens", help="a folder of tokens in place of the digits")
    parser.add_argument("--tokenizer", help="the bundle that it was encoded with")
    arguments = parser.parse_args()
    config = DIGITS
    if arguments.tokens:
        config = ["--config=configs/pictures.py:tiny", f"--config.data.path={arguments.tokens}"]
        config += [f"--config.tokenizer.bundle={arguments.tokenizer}", "--config.data.num_test=0"]
    root = Path(arguments.directory or tempfile.mkdtemp(prefix="kill_resume"))
    root.mkdir(parents=True, exist_ok=True)
    log, choice = root / "log", random.Random(arguments.seed)
    began = time.monotonic()
    ended(started(root / "whole", log, *config, "--config.checkpoint.keep=1000"), 3600)
    length = time.monotonic() - began
    expected, known = result(root / "whole"), offered(root / "whole")
    print(f"left alone: {length:.1f} s, {len(expected['lines'])} lines, {len(known)} checkpoints")
    kills, number, wrong, checked = 0, 0, 0, 0
    while True:
        workdir, began = root / f"killed{number}", time.monotonic()
        from_the_start = not workdir.exists()
        moment = choice.uniform(0, length) if kills < arguments.kills else 3600.0
        if not ended(started(workdir, log, *config), moment):
            kills += 1
            found = offered(workdir)
            bad = [name for name, fingerprint in found.items() if known.get(name) != fingerprint]
            wrong, checked = wrong + len(bad), checked + len(found)
            newest = {s: max((int(n.split("/")[1]) for n in found if n.startswith(s)), default=0)
                      for s in STAGES}  # fmt: skip
            print(f"kill {kills} after {moment:.2f} s; newest {newest}; wrong {bad}", flush=True)
            continue
        if from_the_start:  # on a machine that others use too, the first run says little
            length = min(length, time.monotonic() - began)
        now = result(workdir)
        bad = [name for name in expected if now[name] != expected[name]]
        wrong += len(bad)
        print(f"run {number} is done; differing from the one left alone: {bad}", flush=True)
        number += 1
        if kills >= arguments.kills:
            break
    print(f"{kills} kills, {number} runs, {checked} offered checkpoints, {wrong} of all wrong")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
