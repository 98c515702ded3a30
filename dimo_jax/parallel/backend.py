"""JAX's backend: how it starts without noise, what it found, and what it left unused."""

import functools
import glob
import os
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import jax
from jax._src import hardware_utils

from dimo_jax.common.errors import InputError

# Without these libtpu asks a metadata server for its host, for minutes, refuses a second process on
# the machine, and reports to stderr that it found no TPU (libtpu 0.0.42).
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
NVIDIA_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")  # the last one is WSL's
# Platform of JAX -> how its plug-in is installed.
_INSTALL = {
    "cuda": "pip install -e '.[cuda13]' (driver 580 or newer; '.[cuda12]': 525 or newer)",
    "tpu": "pip install -e '.[tpu]'",
}
_NEEDED = {"cuda": "an NVIDIA GPU", "tpu": "a TPU VM"}
_config: Any = jax.config  # whose options are attributes that JAX's types do not have


def prepare() -> None:
    """Set what must stand before the backend starts; start nothing.

    JAX_ENABLE_X64 is switched off with a line on stderr: weights are float32, and with it
    random numbers are others than those of every recorded run.
    """
    if _config.jax_enable_x64:
        print(
            "warning: JAX_ENABLE_X64 is set, and switched off here: everything is float32",
            file=sys.stderr,
            flush=True,
        )
        jax.config.update("jax_enable_x64", False)
    if not nvidia_found():
        # Where the plug-in for NVIDIA GPUs is installed to plan with, JAX would report, with a
        # traceback, that a part of CUDA is missing, before it finds no GPU (jax 0.10).
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    if "tpu" in (_config.jax_platforms or "tpu").split(",") and not tpu_found():
        silence_libtpu()


def silence_libtpu() -> None:
    """Keep libtpu, which JAX tries first wherever it is installed, from reporting that it is alone.

    Only where there is no TPU, or it is not to be used.
    """
    tpu_found()  # before its signs in the environment are ours
    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)


def start() -> None:
    """Start the backend; with several processes after they have found each other.

    Raises:
        InputError: JAX_PLATFORMS names what JAX cannot use on this machine.
    """
    prepare()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: no plug-in (jax 0.10)
        wanted = _config.jax_platforms
        if not wanted:
            raise
        first = wanted.split(",")[0].replace("gpu", "cuda")
        reason = (str(error).splitlines() or [""])[0].partition(" (set JAX_PLATFORMS")[0].strip(".")
        needed = "the names are cpu, cuda and tpu"
        if first in _INSTALL:
            needed = f"it needs {_NEEDED[first]} and {_INSTALL[first]}"
        raise InputError(
            f"JAX_PLATFORMS={wanted}, and JAX cannot use that here ({reason or 'no plug-in'}); "
            f"{needed}; or unset JAX_PLATFORMS to use what there is"
        ) from error


def summary() -> str:
    """Return the devices of this run in words: '8 x NVIDIA H100 80GB HBM3, 2 processes'."""
    device, count = jax.devices()[0], jax.process_count()
    kind = "CPU" if device.platform == "cpu" else device.device_kind
    processes = "1 process" if count == 1 else f"{count} processes"
    return f"{jax.device_count()} x {kind}, {processes}"


def accelerator() -> str:
    """Return what this machine has besides its CPU, in words; nothing if there is nothing."""
    gpu = nvidia_found()
    return f"an NVIDIA GPU ({gpu})" if gpu else "a TPU" * tpu_found()


def unused_accelerator(environ: Mapping[str, str] = os.environ) -> str:
    """Return a sentence about an accelerator that is here while JAX uses the CPU, else nothing.

    Args:
        environ: the environment.
    """
    if jax.default_backend() != "cpu":
        return ""
    what, gpu = accelerator(), nvidia_found()
    if not what:
        return ""
    plugins = ("jax_cuda13_plugin", "jax_cuda12_plugin") if gpu else ("libtpu",)
    if environ.get("JAX_PLATFORMS"):
        todo = f"JAX_PLATFORMS={environ['JAX_PLATFORMS']} says so; unset it to use it"
    elif any(map(find_spec, plugins)):
        tool = "nvidia-smi shows whether the driver works" if gpu else "is another process using it"
        todo = f"the plug-in is installed, but found no device: {tool}"
    else:
        todo = f"install the plug-in: {_INSTALL['cuda' if gpu else 'tpu']}"
    return f"{what} is present and not used, the CPU is; {todo}"


def nvidia_found() -> str | None:
    """Return what shows that there is a GPU: a file of its driver, or the driver's tool."""
    return next(filter(os.path.exists, NVIDIA_FILES), shutil.which("nvidia-smi"))


@functools.cache
def tpu_found() -> bool:
    """Return whether this is a TPU VM, or a container on one."""
    # /dev/vfio belongs to other devices too; JAX's list of PCI ids tells a TPU behind it.
    return bool(
        hardware_utils.num_available_tpu_chips_and_device_id()[0]
        or glob.glob("/dev/accel[0-9]*")
        or {"TPU_ACCELERATOR_TYPE", "JAX_FORCE_TPU_INIT"} & set(os.environ)
    )
