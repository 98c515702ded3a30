"""What the errors of JAX's runtime say: too little memory, or another process that is gone.

They carry no type of their own, so whole phrases of the libraries decide, as they stand in jaxlib
0.10.2 and 0.12.0, in XLA's CUDA plug-in and in NCCL 2.32. Single words are in too many errors of
this process alone: "peer" in CUDA's peer access, "barrier" in kernels, "NCCL" in its own lack of
memory, "unavailable" in what cuDNN cannot do.
"""

import re
from collections.abc import Iterator

import jax

MEMORY = (
    r"out[ _]of[ _]memory",  # XLA on every device, CUDA, NCCL
    r"Ran out of memory",  # the TPU's compiler
    r"RESOURCE_EXHAUSTED: ",
    r"failed to allocate (request for )?[\d.]+",  # CUDA: bytes, or 1.5GiB
    r"CU(DNN|BLAS|SOLVER|SPARSE)_STATUS_ALLOC_FAILED",
)
# TensorStore and gRPC have the same status for a disk and for a message.
OTHER_RESOURCES = (
    r"No space left on device",
    r"Disk quota exceeded",
    r"message larger than max",
)
LOST = (
    # Gloo, and the system's words for a connection, with which its errors and gRPC's end.
    r"Connection closed by peer",
    r"Connection reset by peer",
    r"Connection refused",
    r"Connection timed out",
    r"Broken pipe",
    r"Application timeout caused pair closure",
    r"Timed out waiting \d+ms for (recv|send)",
    r"Gloo context initialization failed",
    # NCCL
    r"remote process exited or there was a network error",
    r"Connection closed by remote peer",
    r"NET/IB ?: Got completion from peer",
    # The coordination service.
    r"heartbeat timeout\. This indicates",
    r"unhealthy \(stopped sending heartbeats\)",
    r"The tasks have crashed",
    r"another task died",
    r"is already in error before the barrier was called",
    r"Barrier failed because",
    r"Barrier timed out\. ",
    r"GetKeyValue\(\) timed out with key",
    r"Shutdown barrier (in coordination service )?has failed",
    r"coordination service has (been )?(shut down|stopped)",
    r"Coordination service is shutting down",
    r"Failed to send RPC to coordination service",
    r"Polled an error from coordination service",
    r"All tasks were set to error because",
    r"incarnation ID mismatch",
    r"with a different incarnation",
    r"must be registered before sending heartbeat",
    # gRPC, by which it is reached.
    r"failed to connect to all addresses",
    r"Socket closed",
)


def out_of_memory(error: BaseException | None) -> str | None:
    """Return the line that says so, if this error or one behind it is a lack of device memory."""
    for text in _texts(error):
        if _says(MEMORY, text) and not _says(OTHER_RESOURCES, text):
            return text.splitlines()[0]
    return None


def peer_lost(error: BaseException | None) -> bool:
    """Return whether this error, or one behind it, says that another process is gone.

    Never where this process has run out of memory: then the cause is here.
    """
    return out_of_memory(error) is None and any(_says(LOST, text) for text in _texts(error))


def _says(phrases: tuple[str, ...], text: str) -> bool:
    return re.search("|".join(phrases), text, re.IGNORECASE) is not None


def _texts(error: BaseException | None) -> Iterator[str]:
    """Yield the runtime's errors in a chain of exceptions, as text."""
    while error is not None:
        text = str(error)
        # What is found out only as a device's array is read is a ValueError (jaxlib 0.10), with
        # the status at its head as in the others.
        read = isinstance(error, ValueError) and re.match(r"[A-Z_]+: ", text)
        if isinstance(error, jax.errors.JaxRuntimeError) or read:
            yield text
        error = error.__cause__ or error.__context__
