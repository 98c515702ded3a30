"""Machines that are not there: their devices as the compiler knows them, and what they can do."""

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import jax
from jax.experimental import topologies

from dimo_jax.common.errors import InputError
from dimo_jax.parallel import backend
from dimo_jax.profiling import devices, gpu_targets

_SHAPES = (
    "v4:2x2x1, v5e:4x4, v5p:2x2x2, v6e:4x4 (any slice of these), h100:8 (up to 8 GPUs), h100:8x4 "
    "(four such nodes), a100, a100_40gb, h200, b200, l40s, or cpu:8"
)
_MOST_GPUS, _MOST_NODES = 8, 1024  # of a node: HGX and DGX boards have 4 or 8


def find(topology: str, num_slices: int = 1) -> tuple[Sequence[Any], devices.Device | None]:
    """Devices to compile for, and what one of them can do (None for a CPU).

    Call it before anything else of JAX: this process then computes on its CPU only.

    Args:
        topology: a TPU generation and the shape of a slice; a GPU and how many of them, of each of
            how many nodes; or cpu and a number of devices.
        num_slices: of a TPU, joined by the data-centre network.

    Raises:
        InputError: for another name or shape; where the compiler is missing.
    """
    kind, _, shape = topology.partition(":")
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    backend.prepare()
    if kind == "cpu" and re.fullmatch(r"[1-9]\d*", shape):
        jax.config.update("jax_num_cpu_devices", int(shape))
        return jax.devices(), None
    # JAX's cache takes a program for absent devices, and fails to give it back (jax 0.10).
    jax.config.update("jax_enable_compilation_cache", False)
    if kind in gpu_targets.TARGETS and re.fullmatch(r"\d{1,9}(x\d{1,9})?", shape):
        return _gpus(topology, num_slices), devices.DEVICES[kind]
    if kind in ("v4", "v5e", "v5p", "v6e") and re.fullmatch(r"\d+(x\d+)+", shape):
        return _tpus(topology, num_slices), devices.DEVICES[kind]
    raise InputError(f"--topology={topology} is none of {_SHAPES}")


def _gpus(topology: str, num_slices: int) -> Sequence[Any]:
    kind, _, shape = topology.partition(":")
    per_node, nodes = (int(n) for n in (*shape.split("x"), "1")[:2])
    if num_slices > 1:
        raise InputError("--num_slices is for TPUs; several nodes of GPUs are --topology=h100:8x4")
    if not (1 <= per_node <= _MOST_GPUS and 1 <= nodes <= _MOST_NODES):
        raise InputError(
            f"--topology={topology}: give 1 to {_MOST_GPUS} GPUs of a node, and 1 to {_MOST_NODES} "
            f"nodes, as in {kind}:8 or {kind}:8x4"
        )
    if not any(map(find_spec, ("jax_cuda13_plugin", "jax_cuda12_plugin"))):
        raise InputError(
            f"--topology={topology} needs the compiler for NVIDIA GPUs, JAX's CUDA plug-in, which "
            "is not installed here; install it with: pip install -e '.[gpu_plan]' (no GPU is "
            "needed)"
        )
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "1":  # JAX's default
        # Without the compiler's warning of a program that needs more than it may use: a plan's own.
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    (name, *_) = devices.DEVICES[kind].kinds
    # Slices x processes x devices of each: JAX makes a slice of what shares a host (jax 0.10).
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=kind,
        target_config=gpu_targets.text(gpu_targets.TARGETS[kind], name),
        topology=f"{nodes}x1x{per_node}",
    ).devices


def _tpus(topology: str, num_slices: int) -> Sequence[Any]:
    backend.silence_libtpu()
    # A chip of a v4 has two cores, which are one device to a program, as on the others.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    options |= {"num_slices": num_slices} if num_slices > 1 else {}
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        ).devices
    except Exception as error:
        first = str(error).splitlines()[0]
        if "libtpu" in first or "UNIMPLEMENTED" in first or isinstance(error, NotImplementedError):
            raise InputError(
                f"--topology={topology} needs the TPU compiler, the wheel libtpu, which is not "
                "installed here; install it with: pip install -e '.[tpu]' (no TPU is needed)"
            ) from error
        raise InputError(f"--topology={topology} is no slice that there is: {first}") from error
