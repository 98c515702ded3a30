"""Machines that are not there: their devices as the compiler knows them, and what they can do."""

import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from dimo_jax.common.errors import InputError
from dimo_jax.parallel import backend
from dimo_jax.profiling import devices

_SHAPES = "v4:2x2x1, v5e:4x4, v5p:2x2x2, v6e:4x4 (any slice of these), or cpu:8"


def find(topology: str, num_slices: int = 1) -> tuple[Sequence[Any], devices.Device | None]:
    """Devices to compile for, and what one of them can do (None for a CPU).

    Call it before anything else of JAX: this process then computes on its CPU only.

    Args:
        topology: a TPU generation and the shape of a slice, or cpu and a number of devices.
        num_slices: of a TPU, joined by the data-centre network.

    Raises:
        InputError: for another name or shape; where libtpu is missing.
    """
    kind, _, shape = topology.partition(":")
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    backend.prepare()
    if kind == "cpu" and re.fullmatch(r"[1-9]\d*", shape):
        jax.config.update("jax_num_cpu_devices", int(shape))
        return jax.devices(), None
    if kind not in ("v4", "v5e", "v5p", "v6e") or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise InputError(f"--topology={topology} is none of {_SHAPES}")
    backend.silence_libtpu()
    # A chip of a v4 has two cores, which are one device to a program, as on the others.
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}
    options |= {"num_slices": num_slices} if num_slices > 1 else {}
    try:
        found = topologies.get_topology_desc(
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
    return found, devices.DEVICES[kind]
