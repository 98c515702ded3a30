"""A compiled program's text, read as what it runs: which instructions, and how often each.

The text is XLA's own (`compiled.as_text()`): one computation after the other, each instruction with
the shape of its result. What stands in a loop counts as often as the loop is run.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:body|to_apply|calls|true_computation|false_computation|branch_computations)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_CONDITION = re.compile(r" while\(.*\bcondition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Instruction(NamedTuple):
    """One instruction of a program.

    Attributes:
        line: its text.
        computation: the name of the computation that it stands in.
        times: how often a run of the program executes it.
    """

    line: str
    computation: str
    times: int


def executed(text: str) -> Iterator[Instruction]:
    """Yield every instruction that a run of the program reaches, those inside fusions too.

    Args:
        text: of a compiled, partitioned program.
    """
    computations, entry = _computations(text)

    def visit(name: str, times: int) -> Iterator[Instruction]:
        for line in computations.get(name, ()):
            yield Instruction(line, name, times)
            inner = times * _trips(line, computations)
            for several, one in _CALLED.findall(line):
                for called in several.split(",") if several else [one]:
                    yield from visit(called.strip().lstrip("%"), inner)

    return visit(entry, 1)


def shapes(text: str) -> list[tuple[str, int]]:
    """Return (dtype, bytes) of every array shape in a piece of text."""
    return [(dtype, _size(dtype, dimensions)) for dtype, dimensions in _SHAPE.findall(text)]


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


def _size(dtype: str, dimensions: str) -> int:
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return math.prod(int(n) for n in dimensions.split(",") if n) * bits // 8
