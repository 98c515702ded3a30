import pytest

from dimo_jax.common.errors import InputError
from dimo_jax.parallel import clusters
from tests.helpers.environments import MPI, POD, SLURM


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
    assert clusters.cluster_of(environ) == cluster


def test_indexed_kubernetes_jobs_need_their_package(monkeypatch):
    monkeypatch.setattr(clusters, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="package kubernetes.*is missing.*--num_processes=1"):
        clusters.cluster_of(POD)
    monkeypatch.setattr(clusters, "find_spec", lambda name: name)
    assert clusters.cluster_of(POD) == "Kubernetes"


def test_open_mpi_that_does_not_say_where():
    with pytest.raises(InputError, match="Open MPI started 4 processes.*--coordinator=host:port"):
        clusters.cluster_of({"OMPI_COMM_WORLD_SIZE": "4"})


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
    assert clusters.local_devices(SLURM | environ) == devices
