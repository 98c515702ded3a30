"""What a plan says of NVIDIA GPUs besides: memory that XLA takes, kernels, a bound of the time."""

from collections.abc import Mapping
from typing import Any

from dimo_jax.profiling import kernels
from dimo_jax.profiling.devices import Device
from dimo_jax.profiling.gpu_targets import GpuTarget

VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"
# Of a card's memory: what JAX takes by default (jax 0.10), and what leaves room for CUDA's own.
DEFAULT_FRACTION, LARGEST_FRACTION = 0.75, 0.95

MORE_MEMORY = f"set {VARIABLE}={LARGEST_FRACTION} in the run's environment"

_LEAVES_OUT = (
    "kernels at the card's peak or at its memory's full bandwidth, one after the other, what its "
    "cache can hold free, collectives beside them at the full speed of a node's links; not the "
    "time between kernels, nor that with a GPU at hand XLA times some kernels and takes the best"
)


def facts(
    text: str, target: GpuTarget, device: Device, result: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a program would run on each GPU, and a time that it cannot beat.

    Args:
        text: of the compiled, partitioned program.
        target: the board.
        device: what it can do.
        result: what the plan has found.

    Returns:
        JSON values: "memory_limits_bytes" {fraction of the card: bytes that XLA then takes};
        "mem_fraction", the smallest of them in which the program fits, None where there is none;
        "kernels" {kind: started in a call}; "predicted".
    """
    limits = {x: int(x * target.memory_bytes) for x in (DEFAULT_FRACTION, LARGEST_FRACTION)}
    needed = result["memory"]["peak_bytes"]
    found = kernels.find(text)
    peak = device.bf16_tflops * 1e12
    parts = kernels.least_seconds(found, peak, target.gb_per_second * 1e9, target.l2_bytes)
    seconds = sum(parts.values())
    received = sum(result["collectives_bytes"].values())
    if received:
        parts["collectives"] = received / (target.link_gb_per_second * 1e9)
        seconds = max(seconds, parts["collectives"])
    return {
        "memory_limits_bytes": {str(fraction): size for fraction, size in limits.items()},
        "mem_fraction": next((x for x, size in limits.items() if needed <= size), None),
        "kernels": kernels.counts(found),
        "predicted": {
            "step_seconds": seconds,
            "share_of_peak": result["flops"] / result["devices"] / peak / seconds,
            "parts": parts,
            "leaves_out": _LEAVES_OUT,
            "is_bound": True,
        },
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """Return a plan's facts for people, a fact on each line."""
    default, largest = (size / 2**30 for size in result["memory_limits_bytes"].values())
    started = ", ".join(f"{kind} {count}" for kind, count in result["kernels"].items())
    predicted = result["predicted"]
    parts = ", ".join(f"{kind} {x * 1e3:.3g}" for kind, x in predicted["parts"].items())
    return [
        f"XLA takes {default:.2f} GiB ({DEFAULT_FRACTION:.0%} of the card) by default, "
        f"{largest:.2f} with {VARIABLE}={LARGEST_FRACTION}",
        f"kernels started in a call: {started}",
        f"a call takes at least {predicted['step_seconds'] * 1e3:.3g} ms (a bound, no estimate), "
        f"so at most {predicted['share_of_peak']:.0%} of the peak; by kind, ms: {parts}",
        f"the bound counts {predicted['leaves_out']}",
    ]
