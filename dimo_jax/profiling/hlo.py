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
_OPERATION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(([^)]*)\)")
_OPERAND = re.compile(r"%([\w.\-]+)")
# What runs other computations one kernel after the other. Whatever else names a computation (a
# fusion, a reduction, a sort) runs it inside of its own kernel.
_IS_CONTROL = re.compile(r"[\])}] (?:while|call|conditional|async-start)\(")
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
        inside: whether it is a part of another instruction's kernel.
    """

    line: str
    computation: str
    times: int
    inside: bool = False


class Shape(NamedTuple):
    """An array's dtype and dimensions."""

    dtype: str
    dimensions: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of its elements."""
        return math.prod(self.dimensions)

    @property
    def bytes(self) -> int:
        """Its size in memory, without what a layout pads."""
        bits = 8 if self.dtype == "pred" else int(re.findall(r"\d+", self.dtype)[0])
        return self.size * bits // 8


class Operation(NamedTuple):
    """An instruction's text, taken apart.

    Attributes:
        name: of its result.
        shape: of its result, as text; `shapes` reads it.
        opcode: "fusion", "dot", ...
        operands: names of results in the same computation.
        is_root: whether its result is the computation's.
        line: its text.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    is_root: bool
    line: str


def operation(line: str) -> Operation | None:
    """Take an instruction apart; None for a line that is none."""
    found = _OPERATION.match(line)
    if not found:
        return None
    root, name, shape, opcode, operands = found.groups()
    return Operation(name, shape, opcode, tuple(_OPERAND.findall(operands)), bool(root), line)


def executed(text: str) -> Iterator[Instruction]:
    """Yield every instruction that a run of the program reaches, those inside fusions too.

    Args:
        text: of a compiled, partitioned program.
    """
    lines, entry = computations(text)

    def visit(name: str, times: int, inside: bool) -> Iterator[Instruction]:
        for line in lines.get(name, ()):
            yield Instruction(line, name, times, inside)
            inner = times * _trips(line, lines)
            for called in called_by(line):
                yield from visit(called, inner, inside or not _IS_CONTROL.search(line))

    return visit(entry, 1, False)


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Return {name: its instructions' lines} of a program, and the name that it begins with."""
    lines: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = head[2]
            lines[current] = []
            entry = current if head[1] else entry
        elif current:
            lines[current].append(line)
    return lines, entry


def called_by(line: str) -> list[str]:
    """Return the names of the computations that an instruction runs."""
    return [
        called.strip().lstrip("%")
        for several, one in _CALLED.findall(line)
        for called in (several.split(",") if several else [one])
    ]


def shapes(text: str) -> list[Shape]:
    """Return every array shape in a piece of text."""
    return [
        Shape(dtype, tuple(int(n) for n in dimensions.split(",") if n))
        for dtype, dimensions in _SHAPE.findall(text)
    ]


def _trips(line: str, lines: Mapping[str, list[str]]) -> int:
    """Return how often an instruction runs what it calls: once, unless it is a loop."""
    known, condition = _TRIPS.search(line), _CONDITION.search(line)
    if known:
        return int(known[1])
    if not condition:
        return 1
    # A TPU's text leaves the count out. A loop of jax.lax.scan counts up from 0 to a constant.
    test = lines.get(condition[1], [])
    limits = [int(x[1]) for x in map(_CONSTANT.search, test) if x]
    counts = any("compare(" in x and "direction=LT" in x for x in test)
    return limits[0] if counts and len(limits) == 1 else 1
