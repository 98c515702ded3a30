"""How long a compiled program takes, and what memory it needs."""

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one call, once for each repetition."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of all repetitions."""
        return float(np.median(self.seconds))

    def report(self) -> dict[str, float | int]:
        """Return median, quartiles (interpolated linearly), the least, and how many repetitions."""
        low, high = np.percentile(self.seconds, [25, 75])
        return {
            "median": self.median,
            "lower_quartile": float(low),
            "upper_quartile": float(high),
            "least": min(self.seconds),
            "repetitions": len(self.seconds),
        }


def measure(
    call: Callable[[], Any],
    *,
    repetitions: int,
    warmup: int,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    report: Callable[[int, float], None] | None = None,
) -> Times:
    """Time a call until its result is there.

    Args:
        call: compiled already; returns a pytree of arrays that depends on all it does.
        repetitions: how often the clock is read.
        warmup: repetitions before, which are not counted.
        calls: in a repetition. The host waits for the device after the last one only, as a
            training loop does between two lines of its log.
        clock: seconds from an arbitrary start.
        report: takes, after each repetition and outside its time, how many are done, those of the
            warm-up too, and the seconds of the last one.

    Returns:
        Seconds of one call, the mean of each repetition.
    """
    seconds = []
    for _ in range(warmup + repetitions):
        began = clock()
        for _ in range(calls):
            result = call()
        jax.block_until_ready(result)
        took = clock() - began
        # Logits can be as large as the network: not there beside those of the next repetition.
        del result
        seconds.append(took / calls)
        if report is not None:
            report(len(seconds), took)
    return Times(tuple(seconds[warmup:]))


def compiled(lower: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Compile a program, with the clock beside it.

    Args:
        lower: traces and lowers it: `lambda: jax.jit(f).lower(*args)`.

    Returns:
        The compiled program, and {"lower_seconds", "compile_seconds"}.
    """
    began = time.perf_counter()
    lowered = lower()
    between = time.perf_counter()
    program = lowered.compile()
    after = time.perf_counter()
    return program, {"lower_seconds": between - began, "compile_seconds": after - between}


def program_memory(program: Any) -> dict[str, int]:
    """Return what the compiler planned for one device, in bytes.

    Args:
        program: compiled.

    Returns:
        Arguments, temporaries and outputs; outputs that take a donated argument's place are in
        "donated" too and need no memory of their own.
    """
    plan = program.memory_analysis()
    return {
        "arguments_bytes": plan.argument_size_in_bytes,
        "temporaries_bytes": plan.temp_size_in_bytes,
        "outputs_bytes": plan.output_size_in_bytes,
        "donated_bytes": plan.alias_size_in_bytes,
    }


def peak_memory(devices: Sequence[Any]) -> dict[str, int | None]:
    """Return the most memory that was in use since the process began, in bytes.

    Args:
        devices: jax.Devices of this process.

    Returns:
        "device_peak_bytes": on the fullest device, as its allocator counts; None on a CPU, which
        has none of its own. "host_peak_bytes": of the process, code included.
    """
    stats = [device.memory_stats() or {} for device in devices]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    # Kilobytes, but on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "device_peak_bytes": max(peaks, default=None),
        "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }
