"""The mesh of devices, with the axes `data` and `fsdp`, and arrays on their way to it and back.

A batch is spread over both axes; parameters, moments and averages over `fsdp`, and repeated over
`data`. One device is a mesh of 1 x 1, so nothing else in the program asks how many there are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dimo_jax.common.errors import InputError

AXES = ("data", "fsdp")
Devices = Sequence[jax.Device]  # pyright: ignore[reportInvalidTypeForm]  # a variable of JAX's


def sizes(data: int, fsdp: int, num_devices: int) -> tuple[int, int]:
    """Return the mesh's shape, with -1 replaced by all that is left.

    Args:
        data: devices along `data`, or -1.
        fsdp: devices along `fsdp`, or -1.
        num_devices: in all.

    Raises:
        InputError: if the shape does not make up exactly that many devices.
    """
    known = [size for size in (data, fsdp) if size != -1]
    wrong = len(known) == 0 or any(size < 1 for size in known)
    if not wrong and len(known) == 1:
        rest = num_devices // known[0]
        data, fsdp = (rest, fsdp) if data == -1 else (data, rest)
    if wrong or data * fsdp != num_devices:
        fits = [(n, num_devices // n) for n in range(1, num_devices + 1) if num_devices % n == 0]
        shown = ", ".join(f"{a}x{b}" for a, b in reversed(fits))
        raise InputError(
            f"config.mesh.data={data} and config.mesh.fsdp={fsdp} do not make up the "
            f"{num_devices} devices of this run; give data x fsdp as one of {shown}, or -1 for one "
            "of the two"
        )
    return data, fsdp


def build(data: int, fsdp: int, devices: Devices | None = None) -> Mesh:
    """Return a mesh over all devices of all processes, neighbours in the network side by side.

    Args:
        data: see `sizes`.
        fsdp: see `sizes`.
        devices: default all there are. Several slices of a TPU, or nodes of GPUs, are joined along
            `data`, the axis that sends least.

    Raises:
        InputError: see `sizes`; if `data` is no multiple of the number of slices or nodes.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = sizes(data, fsdp, len(devices))
    # A GPU's slice is its node (jax 0.10). That of one which is only planned for is 0 whatever its
    # node; it has a process for each node, though this one is alone.
    planned = devices[0].platform == "gpu" and jax.process_count() == 1
    where = "process_index" if planned else "slice_index"
    slices = {getattr(device, where, 0) for device in devices}
    if len(slices) == 1:
        grid = mesh_utils.create_device_mesh(shape, devices)
    else:
        if shape[0] % len(slices):
            raise InputError(
                f"config.mesh.data={shape[0]} is no multiple of the {len(slices)} slices; make it "
                "one, since parameters are not sharded across slices (of GPUs: nodes)"
            )
        inner = (shape[0] // len(slices), shape[1])
        grid = mesh_utils.create_hybrid_device_mesh(
            inner, (len(slices), 1), devices, process_is_granule=planned
        )
    # Auto axes: with the Explicit ones of jax.make_mesh an embedding of sharded ids fails (0.10).
    return Mesh(grid, AXES)


def of_this_process(batch_size: int) -> Mesh:
    """Return the mesh ("data",) of a batch that this process works on alone, as in sampling.

    Args:
        batch_size: examples. They are spread over this process's devices where those divide the
            batch, else they go to the first.
    """
    devices = jax.local_devices()
    return Mesh(np.array(devices if batch_size % len(devices) == 0 else devices[:1]), "data")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def stacked_sharding(mesh: Mesh) -> NamedSharding:
    """Several batches, one behind the other: the second axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(None, AXES))


def whole(mesh: Mesh) -> NamedSharding:
    """Return the same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(name: str, batch_size: int, parts: int, mesh: Mesh) -> None:
    """Refuse a batch that the devices, or the parts it is computed in, do not divide.

    Args:
        name: of the field, e.g. "config.distill.batch_size".
        batch_size: of all devices and parts together.
        parts: of a batch whose gradients are accumulated.
        mesh: of the run.

    Raises:
        InputError: with the nearest sizes that fit.
    """
    unit = mesh.size * parts
    if batch_size % unit == 0:
        return
    below = batch_size // unit * unit
    near = " or ".join(str(size) for size in (below, below + unit) if size)
    by = f"{mesh.size} devices" + (f" x {parts} parts" if parts > 1 else "")
    raise InputError(f"{name}={batch_size} does not divide by {by}; the nearest that fits: {near}")


def put(tree: Any, shardings: Any) -> Any:
    """Return host arrays, complete on every process, as global arrays.

    Args:
        tree: pytree of arrays, the same on every process.
        shardings: one for all leaves, or a tree of them.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, NamedSharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, tree)

    def place(x: Any, sharding: NamedSharding) -> jax.Array:
        # device_put would compare the whole array across processes, leaf by leaf.
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree, shardings)


def from_rows(
    shape: tuple[int, ...], sharding: NamedSharding, rows: Callable[..., np.ndarray]
) -> jax.Array:
    """Return a global array of which every process makes what its devices hold, and no more.

    Args:
        shape: of the whole.
        sharding: of the array.
        rows: a slice for each axis -> that part.
    """

    def part(index: Any) -> np.ndarray:  # JAX's types say that it may be None
        return rows(*index)

    return jax.make_array_from_callback(shape, sharding, part)


def gather(tree: Any) -> Any:
    """Global arrays as NumPy arrays, whole on every process; all processes must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
