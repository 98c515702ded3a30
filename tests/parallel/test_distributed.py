import jax
import pytest

import dimo_jax
from dimo_jax.errors import InputError
from dimo_jax.parallel import distributed

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.mark.parametrize(
    ("environ", "cluster"),
    [
        ({}, None),
        (SLURM, "SLURM"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NUM_TASKS"}, "SLURM"),
        # A batch script, which no srun has started.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),
        (MPI, "Open MPI"),
        (SLURM | MPI, "Open MPI"),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, "TPU"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, "TPU"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "TPU"),
        ({"TPU_ML_PLATFORM": "JAX"}, "TPU"),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_only_a_cluster_of_several_processes_counts(environ, cluster):
    assert distributed.cluster_of(environ) == cluster


def test_indexed_kubernetes_jobs_need_their_package(monkeypatch):
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="package kubernetes.*is missing.*--num_processes=1"):
        distributed.cluster_of(POD)
    monkeypatch.setattr(distributed, "find_spec", lambda name: name)
    assert distributed.cluster_of(POD) == "Kubernetes"


def test_open_mpi_that_does_not_say_where():
    with pytest.raises(InputError, match="Open MPI started 4 processes.*--coordinator=host:port"):
        distributed.cluster_of({"OMPI_COMM_WORLD_SIZE": "4"})


@pytest.mark.parametrize(
    ("environ", "devices"),
    [
        ({}, None),  # no GPU in sight: JAX's business
        ({"SLURM_GPUS_ON_NODE": "4"}, [1]),
        ({"SLURM_GPUS_ON_NODE": "8"}, [2, 3]),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_LOCALID": "0"},
         [0, 1, 2, 3, 4, 5, 6, 7]),
        # --gpus-per-task=1: each sees its own as number 0.
        ({"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "1"}, [0]),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [1]),
        ({"SLURM_GPUS_ON_NODE": "6"}, None),
        ({"SLURM_GPUS_ON_NODE": "2"}, None),
    ],
)  # fmt: skip
def test_the_gpus_of_a_slurm_task(environ, devices):
    assert distributed.local_devices(SLURM | environ) == devices


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed.initialize is called with."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    return calls


def test_alone_nothing_is_started(joined):
    distributed.start(environ={})
    distributed.start(num_processes=1, environ=SLURM)
    distributed.start("host:1", 1, 0, environ=SLURM)
    assert joined == [] and not distributed.started() and distributed.is_lead()
    distributed.barrier("of one")
    distributed.assert_same({"seed": 0})
    assert distributed.agree(True) and not distributed.agree(False)
    assert not distributed.stop_together()


def test_flags_come_before_the_environment(joined):
    distributed.start("10.0.0.1:1234", 4, 0, environ=SLURM)
    (arguments,) = joined
    assert arguments["coordinator_address"] == "10.0.0.1:1234"
    assert (arguments["num_processes"], arguments["process_id"]) == (4, 0)
    assert arguments["cluster_detection_method"] == "deactivate"
    # The end of one is noticed within two minutes.
    assert arguments["heartbeat_timeout_seconds"] <= 60


def test_a_cluster_starts_without_flags(joined):
    distributed.start(environ=SLURM | {"SLURM_GPUS_ON_NODE": "8"})
    distributed.start(environ=MPI)
    assert joined[0]["local_device_ids"] == [2, 3]
    assert "coordinator_address" not in joined[0] and "local_device_ids" not in joined[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", None, None), "--num_processes and --process_id not given"),
        ((None, 2, 0), "--coordinator not given"),
        ((None, None, 0), "--coordinator and --num_processes not given"),
        (("host:1", 2, None), "--process_id not given"),
        (("host:1", 2, 2), "--process_id=2 of --num_processes=2; it runs from 0 to 1"),
        (("host", 2, 0), "--coordinator=host is not host:port"),
    ],
)
def test_incomplete_flags(arguments, message, joined):
    with pytest.raises(InputError, match=message):
        distributed.start(*arguments, environ={})
    assert joined == []


def test_processes_that_do_not_find_each_other(monkeypatch):
    def initialize(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody there\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError) as caught:
        distributed.start("host:1", 2, 1, environ={})
    assert str(caught.value).startswith("cannot join the other processes as process 1 of 2 with")
    assert "nobody there)" in str(caught.value) and "and more" not in str(caught.value)


def test_the_version_of_the_code_follows_the_sources(monkeypatch, tmp_path):
    (tmp_path / "part").mkdir()
    for name in ("__init__.py", "part/a.py"):
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(dimo_jax, "__file__", str(tmp_path / "__init__.py"))
    seen = [distributed.code_version()]
    assert seen[0].startswith(f"{dimo_jax.__version__}+") and seen[0] == distributed.code_version()
    (tmp_path / "part/a.py").write_text("x = 2\n")
    seen.append(distributed.code_version())
    (tmp_path / "part/a.py").rename(tmp_path / "part/b.py")
    seen.append(distributed.code_version())
    (tmp_path / "note.txt").write_text("not code")
    assert distributed.code_version() == seen[2] and len(set(seen)) == 3


@pytest.mark.parametrize(
    ("text", "is_loss"),
    [
        ("FAILED_PRECONDITION: Gloo all-reduce failed: Connection closed by peer [::1]:1", True),
        ("UNAVAILABLE: Task /job:jax_worker/replica:0/task:1 heartbeat timeout", True),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 10 bytes", False),
    ],
)
def test_the_loss_of_a_process_is_told_from_other_errors(text, is_loss, monkeypatch):
    error = jax.errors.JaxRuntimeError(text)
    assert not distributed.lost(error)  # alone
    monkeypatch.setattr(distributed, "started", lambda: True)
    assert distributed.lost(error) == is_loss
    behind = RuntimeError("saving failed")
    behind.__cause__ = error
    assert distributed.lost(behind) == is_loss
    assert not distributed.lost(RuntimeError(text)) and not distributed.lost(None)
    assert distributed.lost(distributed.ProcessLost("gone"))
