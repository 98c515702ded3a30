"""Which cluster started this process, and which of a node's devices are its own."""

import re
from collections.abc import Mapping
from importlib.util import find_spec

from dimo_jax.common.errors import InputError


def cluster_of(environ: Mapping[str, str]) -> str | None:
    """Return which cluster says that this process is one of several, None where it is alone.

    Args:
        environ: the environment.

    Raises:
        InputError: if there are several, but nothing says where they are.
    """
    # Open MPI before SLURM, as JAX asks them: inside an allocation both have spoken.
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        if "OMPI_MCA_orte_hnp_uri" in environ:
            return "Open MPI"
        raise InputError(
            f"Open MPI started {environ['OMPI_COMM_WORLD_SIZE']} processes, but from version 5 on "
            "does not say where; give each --coordinator=host:port, --num_processes and "
            "--process_id"
        )
    # Of the step, not of the job: where no srun started this process, nobody started the others.
    tasks = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or 1
    if int(tasks) > 1 and {"SLURM_STEP_NODELIST", "SLURM_PROCID"} <= set(environ):
        return "SLURM"
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts or int(environ.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return "TPU"
    # Set when JAX is imported on a machine with TPU chips; how many hosts there are is then a
    # matter of the metadata server, which JAX asks.
    if environ.get("TPU_ML_PLATFORM") == "JAX" and "TPU_SKIP_MDS_QUERY" not in environ:
        return "TPU"
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        if find_spec("kubernetes"):
            return "Kubernetes"
        raise InputError(
            "this pod belongs to an indexed job, and the package kubernetes, which tells how many "
            'there are, is missing; pip install "jax[k8s]", or give --coordinator, '
            "--num_processes and --process_id (--num_processes=1 for one alone)"
        )
    return None


def local_devices(environ: Mapping[str, str]) -> list[int] | None:
    """Return this SLURM task's share of the GPUs that it sees; None leaves it to JAX.

    JAX gives each task the one GPU of its number on the node: with one task a node the other GPUs
    would idle, and with --gpus-per-task, where each task sees its own GPU as number 0, all but the
    first would find none.

    Args:
        environ: the environment.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    count = len(visible.split(",")) if visible else int(environ.get("SLURM_GPUS_ON_NODE") or 0)
    # "4(x2),3": four tasks on each of the first two nodes, three on the next.
    tasks = int(re.sub(r"\D.*", "", environ.get("SLURM_STEP_TASKS_PER_NODE", "")) or 0)
    if not count or not tasks:
        return None
    if count == 1:
        return [0]
    share, rest = divmod(count, tasks)
    if rest or not share:
        return None
    first = int(environ["SLURM_LOCALID"]) * share
    return list(range(first, first + share))
