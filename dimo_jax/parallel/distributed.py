"""Many processes as one run: how they start, agree, stop together, and end when one is lost.

JAX's own runtime does the work (jax.distributed). One process for each host, or for each GPU; all
of them run the same command on the same work directory.
"""

import contextlib
import ctypes
import hashlib
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax._src.distributed
import numpy as np
from jax.experimental import multihost_utils

import dimo_jax
from dimo_jax.common.errors import InputError
from dimo_jax.parallel import clusters, runtime_errors

# A process that is not heard of for that long counts as lost.
HEARTBEAT_SECONDS = 60
# The lead may write a report for hours while the others wait; a lost one is noticed before.
BARRIER_SECONDS = 24 * 3600
# How long the lead, which the others hear of each other through, outlives its own error.
GRACE_SECONDS = 3

# How often a process that waits looks whether another has left.
LEFT_SECONDS = 0.5

# The runtime's key under which a process that leaves says so, and counts of the calls of `meet`.
_LEFT = "dimo_jax_left"
_meetings: dict[str, Iterator[int]] = {}
# Whether threads are left behind that an ordinary exit would wait for.
abandoned = threading.Event()
# Count the calls of `stop_together` and `barrier`, see there.
_stops, _barriers = itertools.count(1), itertools.count(1)


class ProcessLost(Exception):
    """Another process of the run has ended, so this one cannot go on; the message says where."""


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Join the other processes of the run; must come before anything that starts JAX's backend.

    Without arguments the environment decides: SLURM, Open MPI, TPU pods and indexed Kubernetes
    jobs say how many processes they started. Where nothing says so, this one is alone, as it is
    with num_processes=1, and nothing happens.

    Args:
        coordinator: host:port of process 0, which all others can reach.
        num_processes: in all.
        process_id: of this one, from 0.
        environ: the environment.

    Raises:
        InputError: if only some of the three are given, if they contradict each other, or if the
            processes do not find each other.
    """
    if num_processes == 1 and not process_id:
        return
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    arguments: dict[str, Any] = {}
    missing = [f"--{name}" for name, value in given.items() if value in (None, "")]
    if len(missing) == len(given):
        cluster = clusters.cluster_of(environ)
        if cluster is None:
            return
        if cluster == "SLURM":
            arguments["local_device_ids"] = clusters.local_devices(environ)
        where = f"as {cluster} says"
    elif not coordinator or num_processes is None or process_id is None:
        raise InputError(
            f"{' and '.join(missing)} not given; --coordinator, --num_processes and --process_id "
            "go together"
        )
    else:
        if not 0 <= process_id < num_processes:
            raise InputError(
                f"--process_id={process_id} of --num_processes={num_processes}; it runs from 0 to "
                f"{num_processes - 1}"
            )
        if not re.fullmatch(r".+:\d+", coordinator):
            raise InputError(f"--coordinator={coordinator} is not host:port; name both")
        # Else SLURM's own idea of the local devices would come on top.
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            "cluster_detection_method": "deactivate",
        }
        where = f"as process {process_id} of {num_processes} with {coordinator}"
    try:
        jax.distributed.initialize(
            **arguments,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=BARRIER_SECONDS,
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"cannot join the other processes {where} ({_first_line(error)}); start all of them "
            "with the same coordinator, or give --num_processes=1 for one alone"
        ) from error
    ctypes.CDLL(None).signal(signal.SIGABRT, _last_words)


def started() -> bool:
    """Return whether this process has joined others; starts no backend."""
    # Not jax.process_count(), which starts one: an error of that start ends up here again.
    return jax.distributed.is_initialized() and jax._src.distributed.global_state.num_processes > 1


def _client() -> Any:
    """Return this process's connection to the runtime; None where it has not joined others."""
    return jax._src.distributed.global_state.client


def is_lead() -> bool:
    """Return whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Return as soon as all processes have come here, however long one of them takes."""
    if started():
        # Between the hosts, as Orbax does it: the public barrier is a collective, which keeps the
        # devices waiting, and for a limited time. A name serves once.
        _client().wait_at_barrier(f"dimo_jax {next(_barriers)} {name}", BARRIER_SECONDS * 1000)


def meet(*, key: str, timeout_ms: int) -> None:
    """Wait at a barrier for background threads, which a process that leaves breaks.

    In the runtime's own, the others would notice after HEARTBEAT_SECONDS that one is missing.

    Args:
        key: of the barrier; every process comes to it equally often.
        timeout_ms: for all to come.

    Raises:
        ProcessLost: another process has left, or JAX's runtime says so.
    """
    if not started():
        return
    client, errors = _client(), []
    name = f"dimo_jax {key} {next(_meetings.setdefault(key, itertools.count(1)))}"

    def wait() -> None:
        try:
            client.wait_at_barrier(name, timeout_ms)
        except Exception as error:
            errors.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    while waiting.is_alive():
        waiting.join(LEFT_SECONDS)
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody has left
            left = client.key_value_try_get(_LEFT)
            errors.append(RuntimeError(f"process {left} failed"))
            break
    if errors:
        raise ProcessLost(describe_loss("in the background", errors[0])) from errors[0]


def lead_first(make: Callable[[], Any]) -> Any:
    """make() on the lead, then on the others, who find in the work directory what it left there.

    Args:
        make: a result, the same on every process; it may write what a second call reads.
    """
    result = make() if is_lead() else None
    barrier("lead first")
    return result if is_lead() else make()


def finish() -> None:
    """Wait at the good end of a command until all processes are there.

    The runtime's own shutdown waits five minutes for the last one, whatever its limit, and then
    aborts those that waited (jaxlib 0.10); and the lead may have a report to write.
    """
    barrier("end")


def agree(flag: bool) -> bool:
    """Return whether the flag is set on all processes; each must call."""
    if not started():
        return flag
    return bool(np.all(multihost_utils.process_allgather(np.asarray(flag))))


def gather_bytes(data: bytes) -> list[bytes]:
    """Return the bytes of each process, in their order; each must call."""
    if not started():
        return [data]
    lengths = multihost_utils.process_allgather(np.asarray(len(data), np.int32))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(rows, lengths, strict=True)]


def assert_same(facts: Mapping[str, Any]) -> None:
    """Compare what every process believes, such as config, seed and version of the code.

    A number that differs between processes would otherwise make arrays that claim to be replicated
    and are not, without any error.

    Args:
        facts: JSON values, nested at will.

    Raises:
        InputError: on every process, if one of them differs anywhere; all differences are listed.
    """
    if not started():
        return
    texts = gather_bytes(json.dumps(facts, sort_keys=True).encode())
    lead, *others = [_flat(json.loads(text)) for text in texts]
    lines = []
    for index, other in enumerate(others, start=1):
        for name in dict.fromkeys([*lead, *other]):
            here, there = (json.dumps(x.get(name, "missing")) for x in (other, lead))
            if here != there:
                lines.append(f"{name} is {here} on process {index} and {there} on process 0")
    if lines:
        raise InputError(
            f"the {len(texts)} processes do not agree: {'; '.join(lines)}; start all of them with "
            "the same command and the same version of the code"
        )


def code_version() -> str:
    """Return the package's version and a hash of its sources: 0.2.0+ and 12 hexadecimal digits."""
    digest = hashlib.sha256()
    root = Path(dimo_jax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return f"{dimo_jax.__version__}+{digest.hexdigest()[:12]}"


def stop_together() -> bool:
    """Return whether all processes are to stop at this point, since SIGTERM came to at least one.

    Every process must call it equally often, after every step. JAX's runtime catches the signal
    (within a second), tells all, and chooses a call that none of them has reached yet.
    """
    # Not the step: that begins anew with every stage, and a point once chosen could never come.
    return started() and multihost_utils.reached_preemption_sync_point(next(_stops))


def lost(error: BaseException | None) -> bool:
    """Return whether an error, or one behind it, says that another process of the run is gone."""
    if not started():
        return False
    behind = error
    while behind is not None:
        if isinstance(behind, ProcessLost):
            return True
        behind = behind.__cause__ or behind.__context__
    return runtime_errors.peer_lost(error)


def describe_loss(where: str, error: BaseException) -> str:
    """Return one sentence for `ProcessLost`.

    Args:
        where: what this process was doing, and where it will go on.
        error: from the runtime.
    """
    if isinstance(error, ProcessLost):
        return str(error)
    return (
        f"{where}: another of the {jax.process_count()} processes has ended, and process "
        f"{jax.process_index()} cannot go on without it ({_first_line(error)}); start all of them "
        "again with the same command"
    )


def abandon_threads() -> None:
    """Say that this process is to end without waiting for its own threads, see `must_leave`."""
    abandoned.set()


def must_leave() -> bool:
    """Return whether a process that failed ends by `leave`, as others or threads may hang."""
    return started() or abandoned.is_set()


def leave(status: int) -> NoReturn:
    """End this process at once, without a shutdown: the others fail in their next exchange."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Not is_lead() and started(), which need the backend: what failed may be its start.
    state = jax._src.distributed.global_state
    if state.client is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            state.client.key_value_set(_LEFT, str(state.process_id), allow_overwrite=True)
    if state.client is not None and state.process_id == 0:
        # Its end takes the coordination service away, at which the runtime aborts the others,
        # before they have said what they found themselves.
        time.sleep(GRACE_SECONDS)
    os._exit(status)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _last_words(_number: int) -> None:
    """End a process that JAX's runtime aborts, with a sentence after the runtime's own lines.

    It aborts where the coordination service has lost a process, or is lost itself. Often that comes
    before any exception: on CPU and GPU a collective may wait for the lost process for ever. The
    runtime takes a Python callback for this, but cannot call it (std::bad_cast, jaxlib 0.10), and
    Python's own handlers run in the main thread only, which may be the one that waits.
    """
    os.write(
        2,
        b"error: JAX's runtime has ended this process, as it does when another process of the run "
        b"has ended; start all of them again with the same command\n",
    )
    os._exit(1)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    fields = {}
    for name, value in values.items():
        inner = isinstance(value, Mapping)
        fields |= _flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return fields


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
