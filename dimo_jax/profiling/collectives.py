"""What a compiled program sends between devices, counted in its text.

The text is XLA's own (`compiled.as_text()`): one computation after the other, each instruction with
the shape of its result. What stands in a loop counts as often as the loop is run.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(")
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]<=|mesh\[(.*?)\] \{(.*?)\})")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CALLED = re.compile(
    r"(?:body|to_apply|calls|true_computation|false_computation|branch_computations)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_CONDITION = re.compile(r" while\(.*\bcondition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def bytes_by_kind(text: str) -> dict[str, int]:
    """Bytes that one device receives in one run of the program.

    Args:
        text: of a compiled, partitioned program.

    Returns:
        {kind: bytes}. With n devices in a group and a result of s bytes an all-gather receives
        s (n - 1) / n, an all-reduce (a ring) 2 s (n - 1) / n, a reduce-scatter s (n - 1), an
        all-to-all s (n - 1) / n, a collective permutation s. Kinds that do not occur are left out.
    """
    computations, entry = _computations(text)
    # By channel: a TPU program has one operation in several pieces, which overlap with others.
    received: dict[tuple[str, str], float] = defaultdict(float)

    def visit(name: str, times: int) -> None:
        for line in computations.get(name, ()):
            found = _COLLECTIVE.search(line)
            if found:
                channel = _CHANNEL.search(line)
                key = (found[2], channel[1] if channel else line.split("=")[0])
                size = times * _received(line, found)
                # A TPU's reduce-scatter: an all-reduce of which a piece is kept, in one kernel.
                if name.startswith("all-reduce-scatter"):
                    key, size = ("reduce-scatter", name), size / 2
                received[key] = max(received[key], size)
            # A reduction's own computation (to_apply) holds no collective: visiting it is harmless.
            inner = times * _trips(line, computations)
            for several, one in _CALLED.findall(line):
                for called in several.split(",") if several else [one]:
                    visit(called.strip().lstrip("%"), inner)

    visit(entry, 1)
    totals = {kind: round(sum(x for (k, _), x in received.items() if k == kind)) for kind in KINDS}
    return {kind: total for kind, total in totals.items() if total}


def _trips(line: str, computations: Mapping[str, list[str]]) -> int:
    """Return how often an instruction runs what it calls: once, unless it is a loop."""
    known, condition = _TRIPS.search(line), _CONDITION.search(line)
    if known:
        return int(known[1])
    if not condition:
        return 1
    # A TPU's text leaves the count out. A loop of jax.lax.scan counts up from 0 to a constant.
    test = computations.get(condition[1], [])
    limits = [int(x[1]) for x in map(_CONSTANT.search, test) if x]
    counts = any("compare(" in x and "direction=LT" in x for x in test)
    return limits[0] if counts and len(limits) == 1 else 1


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    computations: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = head[2]
            computations[current] = []
            entry = current if head[1] else entry
        elif current:
            computations[current].append(line)
    return computations, entry


def _received(line: str, found: re.Match) -> int | float:
    shapes = [_size(*shape) for shape in _SHAPE.findall(found[1])]
    kind, started = found[2], found[3]
    # The result of a start is (operands, results, ...) with flags that have no size to speak of.
    if started and kind in ("all-gather", "collective-permute"):
        size = max(shapes, default=0)
    elif started and kind == "reduce-scatter":
        size = min((s for s in shapes if s > 8), default=0)
    else:
        size = sum(shapes)
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


def _size(dtype: str, dimensions: str) -> int:
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return math.prod(int(n) for n in dimensions.split(",") if n) * bits // 8
