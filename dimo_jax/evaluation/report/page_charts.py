"""Curves as shapes for an inline SVG: scales, ticks, paths. The template only paints them.

Coordinates are in the units of the SVG's view box, WIDTH x HEIGHT, y downwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from dimo_jax.evaluation.report.page_axes import Axis, Tick, axis, number

WIDTH, HEIGHT = 360.0, 216.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 12.0, 10.0, 36.0
# Colours, dashes and marks repeat after so many series.
NUM_STYLES = 6
MAX_POINTS = 240
# A curve over more than this range, all of it above zero, is drawn on a logarithmic axis.
LOG_RATIO = 30
MARKS = ("circle", "square", "diamond", "triangle", "triangle_down", "cross")
MAX_VALUE = 1e100
LEGEND_CENTRE = (13.0, 6.0)
_RADIUS = 3.6


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: in the legend.
        points: (x, y, spread); y None leaves a gap, spread None or 0 draws no bar.
        style: a number below NUM_STYLES, its colour, dash and mark.
        marks: whether points are marked; a curve of many points is not.
        lines: whether they are joined.
    """

    name: str
    points: Sequence[tuple[float, float | None, float | None]]
    style: int = 0
    marks: bool = True
    lines: bool = True


@dataclass(frozen=True)
class Level:
    """A horizontal line: one value that does not depend on x."""

    name: str
    y: float
    spread: float | None = None
    style: int = 1


@dataclass(frozen=True)
class Mark:
    """A marked point: an SVG path, and what it says when pointed at."""

    path: str
    text: str


@dataclass(frozen=True)
class Drawn:
    """A series or a level in coordinates.

    Attributes:
        name: in the legend.
        style: its colour, dash and mark.
        lines: paths.
        bars: paths, the spread of a point each.
        marks: the marked points.
        band: y and height, the spread of a level.
        sample: the path of one mark, for the legend; "" without marks.
    """

    name: str
    style: int
    lines: list[str] = field(default_factory=list)
    bars: list[str] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    band: tuple[float, float] | None = None
    sample: str = ""


@dataclass(frozen=True)
class Chart:
    """All that the template needs."""

    title: str
    x_label: str
    y_label: str
    description: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    drawn: list[Drawn]
    note: str = ""
    log: bool = False
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    levels: Sequence[Level] = (),
    x_values: Sequence[tuple[float, str]] = (),
    x_log: bool = False,
    y_log: bool | None = None,
    from_zero: bool = False,
    note: str = "",
) -> Chart | None:
    """Draw curves over x, with horizontal lines.

    Args:
        title: above the chart.
        series: curves; those without a finite point are left out.
        x_label: below the x axis.
        y_label: what y is; says itself if the axis is logarithmic.
        levels: horizontal lines.
        x_values: (value, text) of the ticks; () chooses round ones.
        x_log: whether x is logarithmic; all x are above zero then.
        y_log: whether the y axis is; None where its values span more than LOG_RATIO.
        from_zero: whether the y axis starts at zero where all values are above it.
        note: below the chart.

    Returns:
        The chart, None if there is nothing to draw.
    """
    series = [entry for entry in series if any(_is_drawn(point) for point in entry.points)]
    if not series:
        return None
    points = [point for entry in series for point in entry.points if _is_drawn(point)]
    xs = [x for x, _, _ in points] + [x for x, _ in x_values]
    spans = [_span(y, spread) for _, y, spread in points]
    spans += [_span(level.y, level.spread) for level in levels]
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    x_axis = axis(min(xs), max(xs), LEFT + 8, WIDTH - RIGHT - 8, x_log, padding=0.0)
    y_log = low > 1 / MAX_VALUE and (high > LOG_RATIO * low if y_log is None else y_log)
    if from_zero and not y_log and low >= 0:
        low = 0.0
    y_axis = axis(low, high, HEIGHT - BOTTOM, TOP, y_log, padding=0.06)
    if low >= 0 and y_axis.low < 0:
        y_axis = Axis(0.0, y_axis.high, y_axis.start, y_axis.end)
    drawn = [_draw_level(level, y_axis) for level in levels]
    drawn += [_draw(entry, x_axis, y_axis, dict(x_values)) for entry in series]
    x_ticks = [Tick(x_axis.at(x), text) for x, text in x_values] or x_axis.ticks()
    return Chart(
        title,
        x_label,
        y_label,
        _describe(title, series, levels, x_label, dict(x_values)),
        x_ticks,
        y_axis.ticks(),
        drawn,
        note,
        log=y_axis.log,
    )


def thinned(
    points: Sequence[tuple[float, float | None]], limit: int = MAX_POINTS
) -> tuple[list[tuple[float, float | None, None]], int]:
    """At most `limit` points, each the mean of as many neighbours.

    Args:
        points: (x, y) in order; y None is a gap and stays one if all of its neighbours are.
        limit: how many are wanted.

    Returns:
        The points with a spread of None, and how many went into one.
    """
    size = max(1, math.ceil(len(points) / limit))
    result = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        known = [y for _, y in part if y is not None]
        x = sum(x for x, _ in part) / len(part)
        result.append((x, sum(known) / len(known) if known else None, None))
    return result, size


def _is_drawn(point: tuple) -> bool:
    # Squares and ratios of anything larger overflow; it is no measurement either.
    return point[1] is not None and abs(point[1]) < MAX_VALUE


def _span(y: float, spread: float | None) -> tuple[float, float]:
    return y - (spread or 0), y + (spread or 0)


def _draw(series: Series, x_axis: Axis, y_axis: Axis, names: dict[float, str]) -> Drawn:
    lines, marks, bars, run = [], [], [], []
    for x, y, spread in series.points:
        if not _is_drawn((x, y, spread)):
            lines, run = [*lines, run], []
            continue
        at = x_axis.at(x), y_axis.at(y)
        run.append(f"{at[0]} {at[1]}")
        if series.marks:
            where = names.get(x, number(x))
            text = f"{series.name}: {number(y)} at {where}"
            marks.append(Mark(_mark_path(series.style, *at), text))
        if spread:
            low, high = y_axis.at(max(y - spread, y_axis.low)), y_axis.at(y + spread)
            bars.append(f"M{at[0]} {low}V{high}")
    lines = [*lines, run]
    joined = [f"M{'L'.join(run)}" for run in lines if len(run) > 1 and series.lines]
    style = series.style % NUM_STYLES
    sample = _mark_path(style, *LEGEND_CENTRE) if marks else ""
    return Drawn(series.name, style, joined, bars, marks, sample=sample)


def _draw_level(level: Level, y_axis: Axis) -> Drawn:
    y, band = y_axis.at(level.y), None
    if level.spread:
        low = y_axis.at(max(level.y - level.spread, y_axis.low))
        high = y_axis.at(level.y + level.spread)
        band = high, round(low - high, 2)
    line = f"M{LEFT} {y}H{WIDTH - RIGHT}"
    return Drawn(level.name, level.style % NUM_STYLES, [line], band=band)


def _mark_path(style: int, x: float, y: float) -> str:
    r = _RADIUS
    shape = MARKS[style % NUM_STYLES]
    if shape == "circle":
        return f"M{x - r:.2f} {y}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    if shape == "square":
        return f"M{x - r:.2f} {y - r:.2f}h{2 * r}v{2 * r}h{-2 * r}z"
    if shape == "diamond":
        r *= 1.25
        return f"M{x:.2f} {y - r:.2f}l{r} {r}l{-r} {r}l{-r} {-r}z"
    if shape == "cross":
        return f"M{x - r:.2f} {y - r:.2f}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}"
    up = -1 if shape == "triangle" else 1
    return f"M{x - r:.2f} {y - up * r:.2f}h{2 * r}l{-r} {up * 2 * r}z"


def _describe(
    title: str,
    series: Sequence[Series],
    levels: Sequence[Level],
    x_label: str,
    names: dict[float, str],
) -> str:
    """Return the chart in words, for whoever does not see it."""
    parts = []
    for entry in series:
        known = [(x, y) for x, y, _ in entry.points if _is_drawn((x, y))]
        if len(known) > 8:
            lowest = min(known, key=lambda point: point[1])
            highest = max(known, key=lambda point: point[1])
            chosen = {"first": known[0], "lowest": lowest, "highest": highest, "last": known[-1]}
            said = [
                f"{word} {number(y)} at {names.get(x, number(x))}"
                for word, (x, y) in chosen.items()
            ]
        else:
            said = [f"{number(y)} at {names.get(x, number(x))}" for x, y in known]
        parts.append(f"{entry.name}: {', '.join(said)}")
    parts += [f"{level.name}: {number(level.y)}" for level in levels]
    return f"{title} over {x_label}. {'; '.join(parts)}."
