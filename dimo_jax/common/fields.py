"""Fields of a config: a default, what may stand there, and what it means. Imports no jax."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

# Steps and seeds are int32 on the device.
LARGEST = 2**31 - 1
_SHOWN = 60  # characters of a value in a message


@dataclasses.dataclass(frozen=True)
class Rule:
    """What may stand in a field.

    Attributes:
        words: after "it must be".
        holds: whether a value may stand there; takes a value of any type.
        choices: all that may, where it is a list of names.
    """

    words: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
        default: its value where a config says nothing; None for sizes that only some networks have,
            whose defaults are those networks'.
        rule: what may stand there.
        about: what it means, for people.
    """

    default: Any
    rule: Rule
    about: str


def whole(low: int, high: int = LARGEST, *, also: tuple[int, ...] = (), why: str = "") -> Rule:
    """Whole numbers from `low` to `high`, and those of `also`, which mean `why`."""
    top = f"at least {low}" + (f" and at most {high:,}" if high != LARGEST else "")
    more = f", or {' or '.join(map(str, also))} for {why}" if also else ""

    def holds(value: Any) -> bool:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return is_whole and (low <= value <= high or value in also)

    return Rule(f"a whole number, {top}{more}", holds)


def number(
    low: float | int | None = None,
    high: float | int | None = None,
    *,
    above: float | int | None = None,
    below: float | int | None = None,
) -> Rule:
    """Finite numbers within limits, of which `above` and `below` are outside."""
    if low is not None and high is not None:
        words = f"in [{low:g}, {high:g}]"
    else:
        limits = (("at least", low), ("above", above), ("at most", high), ("below", below))
        words = " and ".join(f"{name} {limit:g}" for name, limit in limits if limit is not None)

    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (
            math.isfinite(value)
            and (low is None or value >= low)
            and (high is None or value <= high)
            and (above is None or value > above)
            and (below is None or value < below)
        )

    return Rule(f"a number {words}".strip() if words else "a finite number", holds)


def names(*choices: str) -> Rule:
    """Return one of some names; an empty one is shown as such."""
    shown = ", ".join(choice or "empty" for choice in choices)
    return Rule(f"one of {shown}", lambda x: isinstance(x, str) and x in choices, choices)


def text(why: str) -> Rule:
    """Any text.

    Args:
        why: the reason that it has no range, e.g. who checks it instead.
    """
    return Rule(f"a text ({why})", lambda value: isinstance(value, str))


def several(each: Rule, least: int = 0, exactly: int | None = None, distinct: bool = False) -> Rule:
    """Return a tuple or list whose every entry follows a rule."""
    count = (
        f"{exactly}" if exactly is not None else (f"{least} or more" if least else "any number of")
    )
    words = f"a tuple of {count}{' different' if distinct else ''} entries, each {each.words}"

    def holds(value: Any) -> bool:
        if not isinstance(value, list | tuple) or not all(map(each.holds, value)):
            return False
        enough = len(value) >= least if exactly is None else len(value) == exactly
        return enough and not (distinct and len(set(value)) < len(value))

    return Rule(words, holds)


def is_pattern(value: Any) -> bool:
    """Return whether it is a regular expression."""
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except (re.error, RecursionError, OverflowError):
        return False


SWITCH = Rule("True or False", lambda value: isinstance(value, bool))
PATTERN = Rule("a regular expression", is_pattern)


def defaults(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of a tree of fields, in the same tree."""
    return {
        name: defaults(entry) if isinstance(entry, Mapping) else entry.default
        for name, entry in section.items()
    }


def written(value: Any) -> str:
    """Return a value in a message: as it is typed, cut off where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of over 4300 digits; what contains itself
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
