"""What a compiled program sends between devices, counted in its text."""

import math
import re
from collections import defaultdict

from dimo_jax.profiling import hlo

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(")
_GROUPS = re.compile(
    r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]<=|mesh\[(.*?)\][^{]*\{(.*?)\})"
)
_CHANNEL = re.compile(r"channel_id=(\d+)")


def bytes_by_kind(text: str) -> dict[str, int]:
    """Bytes that one device receives in one run of the program.

    Args:
        text: of a compiled, partitioned program.

    Returns:
        {kind: bytes}. With n devices in a group and a result of s bytes an all-gather receives
        s (n - 1) / n, an all-reduce (a ring) 2 s (n - 1) / n, a reduce-scatter s (n - 1), an
        all-to-all s (n - 1) / n, a collective permutation s. Kinds that do not occur are left out.
    """
    # By channel: a TPU program has one operation in several pieces, which overlap with others.
    received: dict[tuple[str, str], float] = defaultdict(float)
    for line, computation, times, _ in hlo.executed(text):
        found = _COLLECTIVE.search(line)
        if not found:
            continue
        channel = _CHANNEL.search(line)
        key = (found[2], channel[1] if channel else line.split("=")[0])
        size = times * _received(line, found)
        # A TPU's reduce-scatter: an all-reduce of which a piece is kept, in one kernel.
        if computation.startswith("all-reduce-scatter"):
            key, size = ("reduce-scatter", computation), size / 2
        received[key] = max(received[key], size)
    totals = {kind: round(sum(x for (k, _), x in received.items() if k == kind)) for kind in KINDS}
    return {kind: total for kind, total in totals.items() if total}


def _received(line: str, found: re.Match) -> int | float:
    sizes = [shape.bytes for shape in hlo.shapes(found[1])]
    kind, started = found[2], found[3]
    operation = hlo.operation(line)
    if operation and started and kind != "all-reduce":
        # The result of a start is all operands, all results, and flags.
        count = len(operation.operands)
        sizes = sizes[count : 2 * count]
    size = sum(sizes)
    if kind == "collective-permute":
        return size
    n = _group_size(line)
    factor = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1}.get(kind, (n - 1) / n)
    return size * factor


def _group_size(line: str) -> int:
    """Devices that take part in one exchange, in any of XLA's three ways to write groups."""
    groups = _GROUPS.search(line)
    if not groups:
        return 1
    members, size, axes, named = groups.groups()
    if members or size:
        return len(members.split(",")) if members else int(size)
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes))
    # A part of an axis is 'name':(before)size.
    parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named)
    return math.prod(int(part or sizes[name]) for name, part in parts)
