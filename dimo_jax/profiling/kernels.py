"""What a compiled program starts on an NVIDIA GPU: its kernels, and their least time."""

import collections
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from dimo_jax.profiling import hlo

# "products": cuBLAS, and the products that XLA writes in Triton; "cudnn": fused attention,
# convolutions; "triton": norms, softmaxes and the like; "loops": element by element; "reductions":
# sums over rows or columns; "others": copies, sorts, slices.
KINDS: tuple[str, ...] = ("products", "cudnn", "triton", "loops", "reductions", "others")

# Results that no kernel computes: names, loops (their bodies are visited), waiting.
_NO_KERNEL = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("while", "call", "conditional", "async-start", "async-update", "async-done"),
    *("partition-id", "replica-id", "opt-barrier", "copy-done", "send-done", "recv-done"),
}
_COLLECTIVE = re.compile(r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_FUSION = re.compile(r"kind=k(\w+)")
_BACKEND = re.compile(r'"fusion_backend_config":\s*\{"kind":\s*"([^"]*)"')
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:ension)?s"?[=:]\s*[{\[]([\d,"\s]*)[}\]]')
# These need no more of their first operand than they return.
_SLICES = ("slice", "dynamic-slice", "gather")
# These change their first operand in place: number of the operand that holds what is new.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
# These need of each operand what is needed of them.
_BY_ELEMENT = {
    *("bitcast", "reshape", "convert", "copy", "transpose", "negate", "exponential", "select"),
    *("add", "subtract", "multiply", "divide", "maximum", "minimum", "compare", "and", "or"),
}


class Kernel(NamedTuple):
    """One kernel of a program.

    Attributes:
        kind: one of KINDS.
        times: how often a run of the program starts it.
        operations: of its matrix products, a product and a sum as two.
        read: bytes that it must read at least.
        written: bytes that it must write at least.
    """

    kind: str
    times: int
    operations: int
    read: int
    written: int


def find(text: str) -> list[Kernel]:
    """Return the kernels of a program compiled for a GPU; collectives are none of them.

    Args:
        text: of the compiled, partitioned program.
    """
    program = _Program(text)
    found = []
    for line, computation, times, inside in hlo.executed(text):
        operation = None if inside else hlo.operation(line)
        if operation and not _COLLECTIVE.match(operation.opcode):
            if operation.opcode not in _NO_KERNEL:
                found.append(program.kernel(operation, computation, times))
    return found


def counts(kernels: Iterable[Kernel]) -> dict[str, int]:
    """Return {kind: kernels that one run starts}, without the kinds that do not occur."""
    totals: collections.Counter[str] = collections.Counter()
    for kernel in kernels:
        totals[kernel.kind] += kernel.times
    return {kind: totals[kind] for kind in KINDS if totals[kind]}


def least_seconds(
    kernels: Iterable[Kernel], operations_per_second: float, bytes_per_second: float, cache: int
) -> dict[str, float]:
    """Return {kind: seconds} that one run's kernels take at least, one after the other.

    A kernel takes as long as its products at the peak, or its bytes at the memory's bandwidth,
    whichever is longer. Of what it reads, and of what it writes, a cache's worth may stay in the
    cache, and is left out.

    Args:
        kernels: of a program.
        operations_per_second: the peak of one device.
        bytes_per_second: of its memory.
        cache: bytes of the cache in front of it.
    """
    totals: dict[str, float] = {}
    for kind, times, operations, read, written in kernels:
        moved = max(0, read - cache) + max(0, written - cache)
        seconds = max(operations / operations_per_second, moved / bytes_per_second)
        totals[kind] = totals.get(kind, 0.0) + times * seconds
    return {kind: totals[kind] for kind in KINDS if kind in totals}


class _Program:
    """The computations of a program, each operation found by its name."""

    def __init__(self, text: str):
        self._lines, _ = hlo.computations(text)
        self._parsed: dict[str, dict[str, hlo.Operation]] = {}

    def body(self, computation: str) -> dict[str, hlo.Operation]:
        if computation not in self._parsed:
            found = filter(None, map(hlo.operation, self._lines[computation]))
            self._parsed[computation] = {operation.name: operation for operation in found}
        return self._parsed[computation]

    def kernel(self, operation: hlo.Operation, computation: str, times: int) -> Kernel:
        around = self.body(computation)
        given = [_bytes(around[name]) for name in operation.operands]
        if operation.opcode == "fusion":
            (called,) = hlo.called_by(operation.line)
            body = self.body(called)
            read = sum(_read(body))
            written = sum(_stored(result, body) for result in _results(body))
        else:
            body = {operation.name: operation}
            written = _stored(operation, around)
            in_place = operation.opcode in (*_SLICES, *_UPDATES)
            read = written if in_place else sum(given)
        work = sum(_operations(x, around if x is operation else body) for x in body.values())
        return Kernel(_kind(operation, body.values()), times, work, read, written)


def _kind(operation: hlo.Operation, body: Iterable[hlo.Operation]) -> str:
    """Return one of KINDS."""
    targets = [found[1] for found in map(_TARGET.search, (x.line for x in body)) if found]
    backend, fusion = _BACKEND.search(operation.line), _FUSION.search(operation.line)
    name = " ".join([*targets, backend[1] if backend else ""])
    if "__cublas" in name or any(x.opcode == "dot" for x in body):
        return "products"
    if "__cudnn" in name:
        return "cudnn"
    if "__triton" in name:
        return "triton"
    return {"Loop": "loops", "Input": "reductions"}.get(fusion[1] if fusion else "", "others")


def _operations(operation: hlo.Operation, names: Mapping[str, hlo.Operation]) -> int:
    """Return the floating-point operations of a matrix product or of cuDNN's attention, else 0."""
    target = _TARGET.search(operation.line)
    name = target[1] if target else operation.opcode
    if name != "dot" and not name.startswith(("__cublas", "__cudnn$fmha")):
        return 0
    first, second = (hlo.shapes(names[x].shape)[0].dimensions for x in operation.operands[:2])
    if name.startswith("__cudnn$fmha"):
        # [B, N, H, d] each. Forward two products; backward the first again and four for gradients.
        batch, queries, heads, channels = first
        products = 5 if "Backward" in name else 2
        return products * 2 * batch * heads * queries * second[1] * channels
    axes = [int(x) for x in re.findall(r"\d+", _CONTRACTED.findall(operation.line)[0])]
    return 2 * hlo.shapes(operation.shape)[0].size * math.prod(first[axis] for axis in axes)


def _results(body: Mapping[str, hlo.Operation]) -> list[hlo.Operation]:
    """Return what a fusion writes: its root, or each part of it."""
    (root,) = (x for x in body.values() if x.is_root)
    return [body[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _stored(operation: hlo.Operation, body: Mapping[str, hlo.Operation]) -> int:
    """Return the bytes of a result that are written: only the update of one updated in place."""
    while operation.opcode == "bitcast":
        operation = body[operation.operands[0]]
    if operation.opcode in _UPDATES:
        operation = body[operation.operands[_UPDATES[operation.opcode]]]
    return 0 if operation.opcode == "parameter" else _bytes(operation)


def _read(body: Mapping[str, hlo.Operation]) -> Iterator[int]:
    """Yield the bytes that a fusion reads of each of its parameters."""
    users: dict[str, list[hlo.Operation]] = {name: [] for name in body}
    for operation in body.values():
        for operand in operation.operands:
            users[operand].append(operation)
    results = _results(body)

    @functools.cache
    def share(name: str) -> float:
        """How much of a result is needed: all of it, unless what needs it takes slices."""
        operation = body[name]
        needed = 1.0 if operation in results else 0.0
        for user in users[name]:
            if user.operands[0] == name and user.opcode in _UPDATES:
                continue  # updated in place
            if user.operands[0] == name and user.opcode in _SLICES:
                needed += share(user.name) * _bytes(user) / _bytes(operation)
            elif user.opcode in _BY_ELEMENT:
                needed += share(user.name)
            elif user.opcode != "tuple":
                needed += 1.0
        return min(1.0, needed)

    for name, operation in body.items():
        if operation.opcode == "parameter":
            yield round(share(name) * _bytes(operation))


def _bytes(operation: hlo.Operation) -> int:
    """Return the bytes of a result, without the scratch space that a library is given."""
    found = hlo.shapes(operation.shape)
    if operation.opcode == "custom-call":
        found = [x for x in found if x.dtype not in ("s8", "u8") or len(x.dimensions) > 1]
    return sum(shape.bytes for shape in found)
