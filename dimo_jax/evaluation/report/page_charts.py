"""Charts as inline SVG, by matplotlib: curves over x, horizontal lines, and the same in words.

matplotlib is imported where a chart is drawn: no command's start waits for it.
"""

import functools
import io
import logging
import math
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard
from xml.etree import ElementTree

# In points, which are the units of the SVG's view box; the legend's rows come below HEIGHT.
WIDTH, HEIGHT = 360, 216
LEFT, TOP, RIGHT, BOTTOM = 54, 10, 352, 180
LEGEND_SIZE, LEGEND_ROW, LEGEND_LETTERS = 12.5, 17, 42
MAX_POINTS = 240
# A curve over more than this range, all of it above zero, is drawn on a logarithmic axis.
LOG_RATIO = 30
# Squares and ratios of anything larger overflow; it is no measurement either.
MAX_VALUE = 1e100
# Ticks are round, and must not be rounded further: 16.25 is not 16.2.
TICK_DIGITS = 6
# Colours, marks and dashes repeat after so many series.
NUM_STYLES = 6
MARKS = "osD^vX"
DASHES = ("-", (0, (3.5, 1.5)), (0, (1, 2)), (0, (4.5, 1.5, 1, 1.5)), (0, (2, 1)), (0, (0.5, 1.5)))
# matplotlib knows no CSS variable: it draws in these colours, which then become style.css's.
COLOURS = [f"#0000{i:02x}" for i in range(1, NUM_STYLES + 1)]
QUIET, LINE, CARD = "#000010", "#000020", "#000030"
VARIABLES = {colour: f"var(--s{i})" for i, colour in enumerate(COLOURS)}
VARIABLES |= {QUIET: "var(--quiet)", LINE: "var(--line)", CARD: "var(--card)"}
# Instead of a reader's own matplotlibrc. Names may come from strangers: a $ begins no formula.
SETTINGS = {
    "axes.axisbelow": True,
    "axes.edgecolor": QUIET,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": QUIET,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.xmargin": 0.03,
    "axes.ymargin": 0.06,
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "grid.color": LINE,
    "legend.borderpad": 0,
    "legend.columnspacing": 1.4,
    "legend.fontsize": LEGEND_SIZE,
    "legend.frameon": False,
    "legend.labelspacing": 0.2,
    "lines.dash_capstyle": "round",
    "lines.linewidth": 2,
    "lines.markeredgecolor": CARD,
    "lines.markersize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "dimo_jax",
    "text.color": QUIET,
    "text.parse_math": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "ytick.major.size": 0,
}

Point = tuple[float, float | None, float | None]
Drawn = tuple[float, float, float | None]


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: in the legend.
        points: (x, y, spread); y None leaves a gap, spread None or 0 draws no bar.
        style: a number, which gives its colour, dash and mark.
        marks: whether points are marked; a curve of many points is not.
        lines: whether they are joined.
    """

    name: str
    points: Sequence[Point]
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
class Chart:
    """Curves over x, with horizontal lines.

    Attributes:
        title: above the chart.
        series: the curves.
        x_label: below the x axis.
        levels: the horizontal lines.
        x_values: (value, text) of the ticks; () chooses round ones.
        x_log: whether x is logarithmic.
        y_log: whether y may be, which it is where its values span more than LOG_RATIO.
        from_zero: whether the y axis starts at zero where all values are above it.
        note: below the title.
    """

    title: str
    series: Sequence[Series]
    x_label: str
    levels: Sequence[Level] = ()
    x_values: Sequence[tuple[float, str]] = ()
    x_log: bool = False
    y_log: bool = True
    from_zero: bool = False
    note: str = ""

    @property
    def curves(self) -> list[tuple[Series, list[Drawn]]]:
        """Series that have a point to draw, with these points."""
        found = [(entry, list(filter(self.is_drawn, entry.points))) for entry in self.series]
        return [(entry, points) for entry, points in found if points]

    @property
    def lines(self) -> list[Level]:
        """The horizontal lines that can be drawn."""
        return [level for level in self.levels if self.is_drawn((1.0, level.y, level.spread))]

    def is_drawn(self, point: Point) -> TypeGuard[Drawn]:
        """Return whether a point has a place in the chart."""
        x, y, spread = point
        if y is None or not all(abs(value) < MAX_VALUE for value in (x, y, spread or 0)):
            return False
        return x > 0 or not self.x_log

    def at(self, x: float, y: float) -> str:
        """Return a point in words."""
        return f"{number(y)} at {dict(self.x_values).get(x, number(x))}"

    @property
    def description(self) -> str:
        """The chart in words, for whoever does not see it."""
        parts = []
        for series, points in self.curves:
            chosen = [("", i) for i in range(len(points))]
            if len(points) > 8:
                heights = [y for _, y, _ in points]
                lowest, highest = (heights.index(end(heights)) for end in (min, max))
                chosen = [("first ", 0), ("lowest ", lowest), ("highest ", highest), ("last ", -1)]
            said = [word + self.at(*points[i][:2]) for word, i in chosen]
            parts.append(f"{series.name}: {', '.join(said)}")
        parts += [f"{level.name}: {number(level.y)}" for level in self.lines]
        return f"{self.title} over {self.x_label}. {'; '.join(parts)}."

    def svg(self, name: str) -> str:
        """Return the <svg> element, equal bytes for an equal chart.

        It takes colours and font from style.css and points say their value when pointed at.

        Args:
            name: what its ids begin with, another for each chart of a page.
        """
        matplotlib = _matplotlib()
        with matplotlib.style.context(["default", SETTINGS]), warnings.catch_warnings():
            # Of letters that its font lacks only the width is guessed: the browser has fonts.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            content = io.BytesIO()
            _figure(self).savefig(content, format="svg")
        return _inline(content.getvalue(), self, name)


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


def thinned(
    points: Sequence[tuple[float, float | None]], limit: int = MAX_POINTS
) -> tuple[list[Point], int]:
    """Return at most `limit` points, each the mean of as many neighbours.

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


@functools.cache
def _matplotlib() -> Any:
    # It warns where it cannot write into the home folder, and then takes a temporary one.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib.figure
    import matplotlib.style
    import matplotlib.ticker

    return matplotlib


def _figure(chart: Chart) -> Any:
    """Return the drawing, a matplotlib Figure; the line of the i-th curve has the id curve-i."""
    names = [_wrapped(entry.name) for entry in (*chart.lines, *(c for c, _ in chart.curves))]
    longest = max(len(line) for name in names for line in name.split("\n"))
    columns = max(1, min(len(names), (LEGEND_LETTERS + 6) // (longest + 5)))
    rows = math.ceil(sum(name.count("\n") + 1 for name in names) / columns)
    height = HEIGHT + (LEGEND_ROW * rows if len(names) > 1 else 0)
    figure = _matplotlib().figure.Figure(figsize=(WIDTH / 72, height / 72), frameon=False)
    axes = figure.add_axes(
        (LEFT / WIDTH, 1 - BOTTOM / height, (RIGHT - LEFT) / WIDTH, (BOTTOM - TOP) / height)
    )
    axes.patch.set_visible(False)
    for level in chart.lines:
        style = _style(level.style)
        axes.axhline(level.y, **style)
        if level.spread:
            ends = level.y - level.spread, level.y + level.spread
            axes.axhspan(*ends, color=style["color"], alpha=0.16, linewidth=0)
    for i, (series, points) in enumerate(chart.curves):
        style = _style(series.style) | {"gid": f"curve-{i}"}
        style |= {"marker": MARKS[series.style % NUM_STYLES]} if series.marks else {}
        style |= {} if series.lines else {"linestyle": "none"}
        gap = (math.nan, math.nan, None)
        shown = [point if chart.is_drawn(point) else gap for point in series.points]
        axes.plot([x for x, _, _ in shown], [y for _, y, _ in shown], **style)
        for x, y, spread in points:
            if spread:
                ends = y - spread, y + spread
                axes.vlines(x, *ends, color=style["color"], linewidth=1.4)
    _scale(axes, chart)
    if len(names) > 1:
        figure.legend(axes.lines, names, loc="lower left", ncols=columns)
    return figure


def _style(number: int) -> dict[str, Any]:
    number %= NUM_STYLES
    return {"color": COLOURS[number], "linestyle": DASHES[number]}


def _scale(axes: Any, chart: Chart) -> None:
    """Choose limits, scales and ticks of axes that hold the curves."""
    ticker = _matplotlib().ticker
    points = [(y, spread or 0) for _, found in chart.curves for _, y, spread in found]
    points += [(level.y, level.spread or 0) for level in chart.lines]
    low, high = min(y - spread for y, spread in points), max(y + spread for y, spread in points)
    y_log = chart.y_log and low > 1 / MAX_VALUE and high > LOG_RATIO * low
    axes.set_xlabel(_plain(chart.x_label) + ("; vertical axis logarithmic" if y_log else ""))
    axes.set_xscale("log" if chart.x_log else "linear")
    axes.set_yscale("log" if y_log else "linear")
    if low >= 0 and not y_log:
        if chart.from_zero:
            axes.update_datalim([(0, 0)], updatex=False)
            axes.autoscale_view()
        axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
        axis.set_minor_locator(ticker.NullLocator())
        axis.set_major_formatter(ticker.FuncFormatter(functools.partial(_tick, axis)))
    if y_log:
        subs = (1, 2, 5) if high < 100 * low else (1,)
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs, numticks=7))
    if chart.x_values:
        axes.set_xticks(*zip(*((x, _plain(text)) for x, text in chart.x_values), strict=True))


def _tick(axis: Any, value: float, _: int) -> str:
    # A linear axis has its zero up to a rounding.
    low, high = axis.get_view_interval()
    is_zero = axis.get_scale() == "linear" and abs(value) < 1e-9 * (high - low)
    return number(0.0 if is_zero else value, TICK_DIGITS)


def _plain(text: str) -> str:
    """Return a text of one line without what XML does not allow."""
    shown = (c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return "".join(shown)


def _wrapped(name: str) -> str:
    return textwrap.fill(_plain(name), LEGEND_LETTERS, max_lines=3, placeholder=" …")


def _inline(content: bytes, chart: Chart, name: str) -> str:
    """Return an SVG file's content as an element of a page, without clipping: nothing is cut."""
    root = ElementTree.fromstring(content)
    size = root.get("viewBox", "")
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        if element.tag != "text":
            element.text = None
        attributes = {key.rpartition("}")[2]: text for key, text in element.items()}
        element.attrib.clear()
        for key, text in attributes.items():
            if key == "href" or (key == "id" and element.tag == "path"):
                element.set(key, text.replace("m", f"{name}-", 1))
            elif key == "style":
                text = re.sub("#[0-9a-f]{6}", lambda found: VARIABLES.get(found[0], found[0]), text)
                element.set(key, re.sub("font-family: [^;]*; ", "", text))
            elif key != "clip-path" and not text.startswith("rotate(-0 "):
                element.set(key, " ".join(re.sub(r"(\.\d\d)\d+", r"\1", text).split()))
    for child in [child for child in root if child.tag != "g"]:
        root.remove(child)  # metadata, a style for all of the page
    for i, (series, points) in enumerate(chart.curves):
        marks = root.iterfind(f".//g[@id='curve-{i}']//use")
        for mark, (x, y, _) in zip(marks, points, strict=series.marks):
            ElementTree.SubElement(mark, "title").text = _plain(f"{series.name}: {chart.at(x, y)}")
    for group in root.iter("g"):
        group.attrib.pop("id", None)
    root.attrib = {"class": "plot", "viewBox": size, "role": "img"}
    root.set("aria-label", _plain(chart.description))
    return ElementTree.tostring(root, encoding="unicode")
