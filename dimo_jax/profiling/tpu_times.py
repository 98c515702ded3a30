"""A TPU program's time as its compiler estimates it, by network, direction and layer.

The compiler writes into the program's text what it expects each instruction to take,
"estimated_cycles" of the chip's clock. Only kernels of Pallas carry none; attention's are counted
here. Measured on no chip: what is said is the compiler's estimate.

Axes: B batch, N positions, D channels of all heads, d of one.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from dimo_jax.profiling import hlo
from dimo_jax.profiling.devices import Device

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_KERNEL = re.compile(r"\battention_(forward|backward)_(\d+)")
_KERNEL_CALL = 'custom_call_target="tpu_custom_call"'
_DIMENSIONS = re.compile(r"bf16\[(\d+),(\d+),(\d+)\]")
# Cycles for 8 x 128 float32 scores: the bundles in the schedule that the compiler makes of a kernel
# for v5e at [64, 257, 16, 48] (libtpu 0.0.42), 4592 and 8690 for 8 heads of 99 such pieces.
_CYCLES_OF_SCORES = {"forward": 5.8, "backward": 11.0}

# The first that is found in an instruction's op_name says which layer it belongs to.
_LAYERS = (
    ("norms", re.compile(r"norm(?!al)")),
    ("attention", re.compile(r"\battention_(forward|backward)_|/shard_map/|bh[qk][dk],|_softmax")),
    ("projections", re.compile(r"/(query|key|value|out)/|[Aa]ttention")),
    ("MLP", re.compile(r"mlp|modulation|[Bb]lock")),
)
NETWORKS = ("teacher", "auxiliary", "generator")
_STEP_PARTS = ("sampling", "divergence", "loss", "optimizer", "ema")
LEAVES_OUT = (
    "what the compiler's own estimate leaves out: waiting for memory beyond its model, the host, "
    "and exchanges between chips, which stand beside it at the full speed of the links"
)


def facts(text: str, device: Device, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the predicted time of a call, and where it goes.

    Args:
        text: of the compiled, partitioned program.
        device: a TPU, with its clock.
        result: what the plan has found.

    Returns:
        {"predicted": {"step_seconds", "share_of_peak", "parts": {network or part of the step:
        seconds, or {"layer direction": seconds}}, "collectives_seconds", "leaves_out",
        "is_bound": False}}.
    """
    parts = _parts(text, device)
    seconds = sum(parts.values())
    nested: dict[str, Any] = {}
    for (network, layer), part in sorted(parts.items(), key=lambda item: -item[1]):
        if layer:
            nested.setdefault(network, {})[layer] = part
        else:
            nested[network] = part
    received = sum(result["collectives_bytes"].values())
    peak = device.bf16_tflops * 1e12
    predicted = {
        "step_seconds": seconds,
        "share_of_peak": result["flops"] / result["devices"] / peak / seconds,
        "parts": nested,
        "collectives_seconds": received / (device.link_gb_per_second * 1e9),
        "leaves_out": LEAVES_OUT,
        "is_bound": False,
    }
    return {"predicted": predicted}


def lines(result: Mapping[str, Any]) -> list[str]:
    """Return the prediction for people, with a table of milliseconds."""
    predicted = result["predicted"]
    seconds, parts = predicted["step_seconds"], predicted["parts"]
    rate = result["batch_size"] / seconds
    found = [
        f"predicted time of a call: {seconds * 1e3:.4g} ms, {predicted['share_of_peak']:.0%} of "
        f"the peak, {rate:.4g} images/s; exchanges beside it "
        f"{predicted['collectives_seconds'] * 1e3:.3g} ms at the links' full speed"
    ]
    networks = {name: part for name, part in parts.items() if isinstance(part, dict)}
    layers = list(dict.fromkeys(layer for part in networks.values() for layer in part))
    layers.sort(key=lambda layer: -sum(part.get(layer, 0) for part in networks.values()))
    if networks:
        found.append(f"{'ms':24}" + "".join(f"{name:>12}" for name in networks))
    for layer in layers:
        row = (f"{part.get(layer, 0) * 1e3:12.2f}" for part in networks.values())
        found.append(f"{layer:24}" + "".join(row))
    rest = {name: part for name, part in parts.items() if not isinstance(part, dict)}
    if rest:
        found.append("ms, else: " + ", ".join(f"{n} {x * 1e3:.3g}" for n, x in rest.items()))
    found.append(f"left out is {predicted['leaves_out']}")
    return found


def _parts(text: str, device: Device) -> dict[tuple[str, str], float]:
    """Return seconds by (network, "layer direction"), or by (part of the step, "")."""
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for instruction in hlo.executed(text):
        line = instruction.line
        name = _OP_NAME.search(line)
        where = name[1] if name else ""
        cycles = _CYCLES.search(line)
        if cycles:
            own = int(cycles[1]) / (device.clock_ghz * 1e9)
        elif _KERNEL_CALL in line:
            own = _kernel_seconds(line, where, device)
        else:
            continue
        seconds[_part(where)] += instruction.times * own
    return dict(seconds)


def _part(op_name: str) -> tuple[str, str]:
    network = next((x for x in NETWORKS if re.search(rf"\b{x}\b", op_name)), None)
    # A sampler has one network, which has no role.
    network = network or ("network" if "Module" in op_name else None)
    if network is None:
        return next((x for x in _STEP_PARTS if re.search(rf"\b{x}\b", op_name)), "other"), ""
    direction = "backward" if "transpose(" in op_name else "forward"
    layer = next((x for x, found in _LAYERS if found.search(op_name)), "embedding and head")
    return network, f"{layer} {direction}"


def _kernel_seconds(line: str, op_name: str, device: Device) -> float:
    """Return an attention kernel's time: the longest of its products, its scores and its bytes."""
    kernel = _KERNEL.search(op_name)
    arrays = [tuple(map(int, x)) for x in _DIMENSIONS.findall(line)]
    if not kernel or not arrays:
        return 0.0
    direction, width = kernel[1], int(kernel[2])
    batch, length, channels = arrays[0]
    heads = batch * channels // width
    rows, lanes = math.ceil(length / 8) * 8, math.ceil(length / 128) * 128
    # Channels fill the matrix unit's 128 lanes, or are padded to them. Two products forwards;
    # backwards those for scores and for four gradients.
    products = {"forward": 2, "backward": 5}[direction]
    operations = products * 2 * heads * rows * lanes * math.ceil(width / 128) * 128
    cycles = heads * rows * lanes / 1024 * _CYCLES_OF_SCORES[direction] / device.cores
    size = sum(2 * math.prod(array) for array in arrays)
    return max(
        operations / (device.bf16_tflops * 1e12),
        cycles / (device.clock_ghz * 1e9),
        size / (device.hbm_gb_per_second * 1e9),
    )
