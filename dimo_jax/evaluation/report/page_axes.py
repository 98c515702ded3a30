"""Scales of a chart: where a value lies, round ticks, numbers as short texts."""

import math
from dataclasses import dataclass

# Ticks are round, and must not be rounded further: 16.25 is not 16.2.
TICK_DIGITS = 6


@dataclass(frozen=True)
class Tick:
    """A place on an axis and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A scale from values to coordinates.

    Attributes:
        low: the value at `start`.
        high: the value at `end`; another than low.
        start: coordinate.
        end: coordinate.
        log: whether equal factors are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the coordinate of a value."""
        low, high, value = (
            (math.log(x) for x in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return round(self.start + (self.end - self.start) * (value - low) / (high - low), 2)

    def ticks(self) -> list[Tick]:
        """Round values within the axis."""
        values = _log_values(self.low, self.high) if self.log else _values(self.low, self.high)
        return [Tick(self.at(value), number(value, TICK_DIGITS)) for value in values]


def axis(low: float, high: float, start: float, end: float, log: bool, padding: float) -> Axis:
    """Return a scale that holds two values.

    Args:
        low: the least value; above zero if `log`.
        high: the largest one; a range without extent gets one, not logarithmic.
        start: coordinate of the low end.
        end: coordinate of the high end.
        log: whether equal factors are equally far apart.
        padding: room beyond either value, as a share of the range; none below zero itself.
    """
    if low == high:
        room = abs(low) / 2 or 1.0
        return Axis(low - room, high + room, start, end)
    if log:
        factor = math.exp(padding * (math.log(high) - math.log(low)))
        return Axis(low / factor, high * factor, start, end, log=True)
    room = padding * (high - low)
    return Axis(low - room if low else low, high + room, start, end)


def number(value: float, digits: int = 3) -> str:
    """Return a short text for a value: '1,500', '0.25', '2e-5'.

    Args:
        value: finite.
        digits: significant ones; all of a whole number below ten million.
    """
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e7:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if value == int(value) or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:,.{digits}g}"


def _values(low: float, high: float, wanted: int = 6) -> list[float]:
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _log_values(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        values = [m * 10.0**e for e in exponents for m in steps]
        values = [value for value in values if low <= value * 1.0001 and value <= high * 1.0001]
        if len(values) <= 7:
            return values
    return values[:: math.ceil(len(values) / 7)]
