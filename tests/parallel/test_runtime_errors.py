"""Which errors of JAX's runtime are a lack of memory, which the loss of another process.

The texts are what jaxlib 0.10.2 raised where one of two processes was killed, what its sources and
those of NCCL 2.32 put together, and what users of JAX reported.
"""

import re

import jax
import pytest

from dimo_jax.common.errors import InputError
from dimo_jax.parallel import runtime_errors

NCCL = "INTERNAL: NCCL operation ncclGroupEnd() failed: {}. Last NCCL warning(error) log entry (may"
NCCL += " be unrelated) '{}'."
MEMORY = [
    "RESOURCE_EXHAUSTED: Out of memory allocating 4611686018427387904 bytes.",
    "RESOURCE_EXHAUSTED: Failed to allocate request for 16.00GiB (17179869184B) on device",
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 40.1G of 15.7G hbm. Exceeded hbm capacity by 24.4G.",
    "INTERNAL: Failed to allocate 123456 bytes for new constant",
    "INTERNAL: CUDA error (failed to allocate 2097152 bytes): CUDA_ERROR_OUT_OF_MEMORY",
    NCCL.format(
        "unhandled cuda error (run with NCCL_DEBUG=INFO)", "Cuda failure 2 'out of memory'"
    ),
    NCCL.format(
        "remote process exited or there was a network error", "Cuda failure 2 'out of memory'"
    ),
    "INTERNAL: cuDNN error CUDNN_STATUS_ALLOC_FAILED in external/xla/xla/cuda_dnn.cc(3900)",
    "INTERNAL: Failed to create cuBLAS handle: CUBLAS_STATUS_ALLOC_FAILED",
]
LOST = [
    "UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection "
    "closed by peer [127.0.0.1]:22961",
    "UNKNOWN: Gloo all-reduce failed: Read error [10.0.0.2]:4006: Connection reset by peer",
    "UNKNOWN: Gloo all-reduce failed: Write error [10.0.0.2]:4006: Broken pipe",
    "UNKNOWN: Gloo AllGather failed: Application timeout caused pair closure",
    "UNKNOWN: Gloo all-reduce failed: Timed out waiting 1800000ms for recv operation to complete",
    "DEADLINE_EXCEEDED: Gloo context initialization failed: timed out connecting: [::1]:2961",
    "UNKNOWN: Gloo collective permute failed: connect [10.0.0.2]:9: Connection refused",
    "UNKNOWN: Gloo collective permute failed: connect [10.0.0.2]:9: Connection timed out",
    NCCL.format("remote process exited or there was a network error", ""),
    NCCL.format(
        "unhandled system error", "socketProgress: Connection closed by remote peer n2<40123>"
    ),
    NCCL.format(
        "unhandled system error",
        "NET/IB: Got completion from peer 10.0.0.2<39138> with status=IBV_WC_RETRY_EXC_ERR(12)",
    ),
    NCCL.format("unhandled system error", "NET/IB : Got completion from peer n2<3> with error 12"),
    "INTERNAL: Barrier failed because: task is set to ERROR: UNAVAILABLE: Task 1 was stopped",
    "UNAVAILABLE: Task 1 heartbeat timeout. This indicates that the remote task has failed, got "
    "preempted, or crashed unexpectedly.",
    "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1",
    "UNAVAILABLE: 1\nThe tasks have crashed. Check the task logs for an earlier error",
    "INTERNAL: This most likely indicates that another task died; see the other task logs",
    "INTERNAL: A task (1) is already in error before the barrier was called. Barrier Id: x::0",
    "DEADLINE_EXCEEDED: Barrier timed out. Id: end::0. This usually happens because a task",
    "DEADLINE_EXCEEDED: GetKeyValue() timed out with key: cpu:gloo/0 and duration: 2m",
    "INTERNAL: Shutdown barrier has failed.",
    "INTERNAL: Shutdown barrier in coordination service has failed:",
    "INTERNAL: Coordination service has stopped. RecordHeartbeat() from task: 1 failed.",
    "INTERNAL: Barrier requested after coordination service has shut down.",
    "FAILED_PRECONDITION: Coordination service has been shut down.",
    "CANCELLED: Coordination service is shutting down. Cancelling PollForErrorAsync()",
    "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted/"
    "died/restarted unexpectedly or this task is experiencing network issues.",
    "UNAVAILABLE: Polled an error from coordination service (this can be an error from this or "
    "another task).",
    "INTERNAL: All tasks were set to error because coordination service encountered an error",
    "ABORTED: Leader incarnation ID mismatch: the coordination leader has restarted.",
    "ABORTED: 1 unexpectedly tried to connect with a different incarnation. It has likely",
    "INVALID_ARGUMENT: Task 1 must be registered before sending heartbeat messages. The service",
    "UNAVAILABLE: failed to connect to all addresses; last error: ipv4:10.0.0.1:8476",
    "UNAVAILABLE: Error received from peer {grpc_message:'Socket closed', grpc_status:14}",
]
NEITHER = [
    NCCL.format("unhandled cuda error (run with NCCL_DEBUG=INFO for details)", ""),
    NCCL.format("invalid usage (run with NCCL_DEBUG=WARN for details)", "Duplicate GPU detected"),
    NCCL.format("internal error - please report this issue to the NCCL developers", "no nic"),
    NCCL.format("unhandled system error", "Error: failed to create shared memory file /dev/shm/x"),
    "UNAVAILABLE: CuDNN graph unavailable for this fusion",
    "INTERNAL: BlasLt is unavailable",
    "INTERNAL: CUDNN_STATUS_EXECUTION_FAILED in external/xla/xla/stream_executor/cuda_dnn.cc(4023)",
    "FAILED_PRECONDITION: DNN library initialization failed. Look at the errors above",
    "INTERNAL: failed to enable peer access from 0 to 1: CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
    "UNIMPLEMENTED: Peer address not supported on this NCCL version or device",
    "INTERNAL: Ragged all-to-all requires custom barrier but ran out of sync flags for hlo",
    "UNIMPLEMENTED: Barrier is not implemented",
    "INTERNAL: Failed to execute barrier kernel: CUDA_ERROR_LAUNCH_FAILED",
    "INVALID_ARGUMENT: Coordination service is not enabled.",
    "INTERNAL: Gloo all-reduce failed: Unsupported reduction kind: 7",
    "INTERNAL: Received preemption notice with death_time 3",
    "RESOURCE_EXHAUSTED: No space left on device",
    "RESOURCE_EXHAUSTED: Error writing /runs/x: Disk quota exceeded",
    "RESOURCE_EXHAUSTED: CLIENT: Received message larger than max (5000000 vs. 4194304)",
    "INTERNAL: Failed to allocate NVSHMEM heap: not supported",
]
EVERY = [(text, kind) for kind, texts in enumerate((NEITHER, MEMORY, LOST)) for text in texts]


@pytest.mark.parametrize(("text", "kind"), EVERY)
def test_an_error_is_a_lack_of_memory_or_a_loss_or_neither(text, kind):
    for error in (jax.errors.JaxRuntimeError(text), ValueError(text)):
        behind = RuntimeError("saving failed")
        behind.__context__ = error
        for seen in (error, behind):
            memory = runtime_errors.out_of_memory(seen)
            assert memory == (text.splitlines()[0] if kind == 1 else None)
            assert runtime_errors.peer_lost(seen) == (kind == 2)


@pytest.mark.parametrize(
    ("phrases", "examples"),
    [
        (runtime_errors.MEMORY, MEMORY),
        (runtime_errors.LOST, LOST),
        (runtime_errors.OTHER_RESOURCES, NEITHER),
    ],
)
def test_every_phrase_has_an_example(phrases, examples):
    for phrase in phrases:
        assert any(re.search(phrase, text, re.IGNORECASE) for text in examples), phrase


def test_memory_comes_before_the_loss_that_it_leads_to():
    for first, second in [(MEMORY[0], LOST[0]), (LOST[0], MEMORY[0])]:
        error = jax.errors.JaxRuntimeError(second)
        error.__cause__ = ValueError(first)
        assert runtime_errors.out_of_memory(error) == MEMORY[0]
        assert not runtime_errors.peer_lost(error)


@pytest.mark.parametrize("kind", [RuntimeError, OSError, InputError])
def test_errors_of_others_are_left_alone(kind):
    # A bucket that cannot be reached, a host's own lack of memory.
    for text in ("Connection refused", "out of memory", "Broken pipe"):
        assert not runtime_errors.peer_lost(kind(text))
        assert runtime_errors.out_of_memory(kind(text)) is None
    assert not runtime_errors.peer_lost(None) and runtime_errors.out_of_memory(None) is None
