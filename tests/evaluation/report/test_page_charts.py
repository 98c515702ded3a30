import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from dimo_jax.evaluation.report import page_charts
from dimo_jax.evaluation.report.page_charts import Chart, Level, Series, number, thinned
from tests.helpers import ROOT

HOSTILE = (
    '$\\frac{1}{$ "b"\r\n\x00\x1b[31m\u202e\ud800\uffff <script>alert(1)</script> & 中文 0.1234567'
)
SHOWN = HOSTILE.replace("\r\n", " ")
for letter in "\x00\x1b\u202e\ud800\uffff":
    SHOWN = SHOWN.replace(letter, "\N{REPLACEMENT CHARACTER}")


def draw(points, **options):
    return Chart("loss", [Series("one", points)], "step", **options)


def climb(heights):
    return [(float(i), y, None) for i, y in enumerate(heights)]


class Picture:
    """What a chart's SVG shows: lines and marks in its units, with y downwards, and its texts."""

    def __init__(self, chart):
        self.root = ElementTree.fromstring(chart.svg("name"))
        self.texts = ["".join(text.itertext()) for text in self.root.iter("text")]
        axes = self.root[0][0]
        x_axis, y_axis = axes[0], axes[1]
        self.x_ticks = {text.text: float(text.get("x")) for text in x_axis.iter("text")}
        self.y_ticks = {
            tick.find(".//text").text: places(tick.find(".//path").get("d"))[0][1]
            for tick in y_axis
            if tick.find(".//path") is not None
        }
        self.axes = [group for group in axes[2:] if group.find("path") is not None]
        self.legend = self.root[0][1] if len(self.root[0]) > 1 else None

    @property
    def legend_is_inside(self):
        """Whether its texts are below the chart and above the end of the view box."""
        bottom = float(self.root.get("viewBox").split()[3])
        # Of several lines each is moved to its place.
        heights = [float(text.get("y") or text.get("transform").split()[1].rstrip(")"))
                   for text in self.legend.iter("text")]  # fmt: skip
        return all(page_charts.HEIGHT + 5 < y < bottom - 2 for y in heights)

    def paths(self, style, **attributes):
        """[path data] of one colour with these CSS properties."""
        wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
        return [
            group.find("path").get("d")
            for group in self.axes
            if (css := properties(group.find("path"))).get("stroke", css["fill"])
            == f"var(--s{style})"
            and wanted.items() <= css.items()
        ]

    def lines(self, style=0):
        """The pieces of a curve: lists of (x, y)."""
        [path] = self.paths(style, stroke_width="2")
        return [places(piece) for piece in path.split("M")[1:]]

    @property
    def marks(self):
        """[(x, y, title)] of the marked points."""
        found = [use for group in self.axes for use in group.iter("use")]
        return [(float(x.get("x")), float(x.get("y")), x.find("title").text) for x in found]


def places(path):
    """[(x, y)] of a path of straight lines."""
    numbers = [float(x) for x in re.findall(r"-?[\d.]+", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def properties(element):
    return dict(entry.split(": ") for entry in element.get("style").split("; "))


def near(value):
    return pytest.approx(value, abs=0.03)


def test_points_lie_where_their_values_are():
    found = Picture(draw([(0.0, 0.0, None), (50.0, 2.0, None), (100.0, 4.0, None)]))
    [[(x0, y0), (x1, y1), (x2, y2)]] = found.lines()
    assert x1 - x0 == near(x2 - x1) and y1 - y0 == near(y2 - y1)
    assert y0 > y1 > y2, "larger values are higher up"
    assert 0 < x0 < x2 < page_charts.WIDTH and 0 < y2 < y0 < page_charts.HEIGHT
    assert found.y_ticks["2"] == near(y1) and found.y_ticks["0"] == near(y0)
    assert found.x_ticks["100"] == near(x2) and found.x_ticks["0"] == near(x0)
    assert found.marks == [(x0, y0, "one: 0 at 0"), (x1, y1, "one: 2 at 50"),
                           (x2, y2, "one: 4 at 100")]  # fmt: skip
    assert "step" in found.texts


def test_a_missing_value_is_a_gap():
    found = Picture(draw(climb([1.0, 2.0, None, float("nan"), 3.0, 4.0, 2.0])))
    assert [len(piece) for piece in found.lines()] == [2, 3]
    assert [title for _, _, title in found.marks][2] == "one: 3 at 4" and len(found.marks) == 5


@pytest.mark.parametrize(
    "points", [[], [(1.0, None, None)], [(1.0, float("inf"), None), (2.0, None, 0.5)]]
)
def test_without_a_finite_value_there_is_no_curve(points):
    assert not draw(points).curves


@pytest.mark.parametrize("options", [{}, {"x_log": True}, {"from_zero": True}, {"y_log": False}])
@pytest.mark.parametrize(
    "points, drawn",
    [
        ([(1.0, 1e300, None), (2.0, 1e-320, None), (3.0, 9e99, 1e99), (4.0, -1e308, 1.0)], 2),
        ([(1.0, -9e99, 1e98), (2.0, 9e99, 1e98)], 2),
        ([(1.0, 1e-320, None), (2.0, 2e-320, None)], 2),
        ([(1.0, 1.0, 1.7e308), (2.0, 2.0, None)], 1),
        ([(1e300, 1.0, None), (-1e300, 1.0, None), (9e99, 1.0, None)], 1),
        ([(1.0, 0.0, 0.0)], 1),
    ],
)
def test_absurd_values_draw_without_overflow(points, drawn, options):
    levels = [Level("far", 1e300), Level("wide", 1.0, 1e300), Level("fair", 9e99)]
    found = Picture(draw(points, levels=levels, **options))
    assert len(found.marks) == drawn
    assert [text for text in found.texts if text in ("far", "wide", "fair")] == ["fair"]
    assert "nan" not in ElementTree.tostring(found.root, encoding="unicode")


def test_points_without_a_logarithm_are_left_out():
    found = Picture(draw([(0.0, 1.0, None), (2.0, 3.0, None), (4.0, 5.0, None)], x_log=True))
    assert [title for _, _, title in found.marks] == ["one: 3 at 2", "one: 5 at 4"]


def test_one_point_stands_in_the_chart():
    found = Picture(draw([(3.0, 7.0, None)]))
    [(x, y, title)] = found.marks
    assert (x, y) == (near(found.x_ticks["3"]), near(found.y_ticks["7"]))
    assert title == "one: 7 at 3"


def test_bars_and_bands_show_the_spread():
    found = Picture(draw([(1.0, 2.0, 1.0), (2.0, 4.0, 0.0)], levels=[Level("floor", 3.0, 1.0)]))
    unit = found.y_ticks["2"] - found.y_ticks["3"]
    [[(x0, y0), (_, y1)]] = found.lines()
    [bar] = found.paths(0, stroke_width="1.4")
    assert sorted(places(bar)) == [(x0, near(y0 - unit)), (x0, near(y0 + unit))]
    [band] = found.paths(1, opacity="0.16")
    [line] = found.paths(1, stroke_width="2")
    heights = {y for _, y in places(band)}
    middle = found.y_ticks["3"]
    assert (min(heights), max(heights)) == (near(middle - unit), near(middle + unit))
    assert [y for _, y in places(line)] == [near(middle)] * 2 == [near((y0 + y1) / 2)] * 2
    (left, _), (right, _) = places(line)
    assert left < x0 and right - left > 250, "from side to side"


def test_steps_are_spaced_by_their_logarithm():
    points = [(float(n), 1.0 / n, None) for n in (1, 2, 4, 16)]
    found = Picture(draw(points, x_log=True, x_values=[(x, f"{x:g}") for x, _, _ in points]))
    assert list(found.x_ticks) == ["1", "2", "4", "16", "step"]
    at = list(found.x_ticks.values())
    assert at[2] - at[1] == near(at[1] - at[0]) and at[3] - at[2] == near(2 * (at[1] - at[0]))
    assert [x for x, _, _ in found.marks] == [near(x) for x in at[:4]]


def test_a_wide_range_gets_a_logarithmic_axis_and_says_so():
    wide = Picture(draw(climb([1.0, 10.0, 100.0, 1000.0])))
    assert "step; vertical axis logarithmic" in wide.texts
    heights = [y for _, y, _ in wide.marks]
    assert heights[0] - heights[1] == near(heights[2] - heights[3])
    assert wide.y_ticks == {text: near(y) for text, y in
                            zip(("1", "10", "100", "1,000"), heights, strict=True)}  # fmt: skip
    for chart in (
        draw(climb([1.0, 1000.0]), y_log=False),
        draw(climb([1.0, 20.0])),
        draw(climb([-1.0, 2000.0])),
        draw(climb([0.0, 2000.0])),
    ):
        assert "step" in Picture(chart).texts


def test_an_axis_may_begin_at_zero_and_never_shows_less_where_nothing_is_negative():
    assert list(Picture(draw(climb([15.0, 17.0]))).y_ticks)[0] == "15"
    assert list(Picture(draw(climb([15.0, 17.0]), from_zero=True)).y_ticks) == [
        "0", "5", "10", "15"
    ]  # fmt: skip
    assert list(Picture(draw(climb([-15.0, 17.0]), from_zero=True)).y_ticks)[0] == "-10"
    lowest = Picture(draw(climb([0.0, 10.0])))
    assert max(y for _, y, _ in lowest.marks) == near(page_charts.BOTTOM)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 2.4, ["0", "0.5", "1", "1.5", "2", "2.5"]),
        (0.0, 1200.0, ["0", "200", "400", "600", "800", "1,000", "1,200"]),
        (1000.0, 1001.0, ["1,000", "1,000.2", "1,000.4", "1,000.6", "1,000.8", "1,001"]),
        (0.0, 0.0021, ["0", "5e-4", "0.001", "0.0015", "0.002"]),
        (-0.3, 0.3, ["-0.3", "-0.2", "-0.1", "0", "0.1", "0.2", "0.3"]),
        (0.0, 4e-15, ["0", "1e-15", "2e-15", "3e-15", "4e-15"]),
        (0.02, 1.1, ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]),
        (0.9, 31.0, ["1", "2", "5", "10", "20"]),
        (1e-9, 1e3, ["1e-9", "1e-7", "1e-5", "0.001", "0.1", "10", "1,000"]),
    ],
)
def test_ticks_are_round_and_few(low, high, expected):
    assert list(Picture(draw(climb([low, high]))).y_ticks) == expected


VALUES = (0.0, 0.25, 1 / 3, 1500.0, 2e-5, 1.25e-7, 12.0, 123456.0, 3e9, -0.5)


def test_numbers_are_short():
    texts = [number(x) for x in VALUES]
    assert texts == [
        "0", "0.25", "0.333", "1,500", "2e-5", "1.25e-7", "12", "123,456", "3e9", "-0.5"
    ]  # fmt: skip


def test_long_curves_are_thinned_to_means():
    points = [(float(i), float(i % 2)) for i in range(1000)]
    found, size = thinned(points, limit=100)
    assert (len(found), size) == (100, 10)
    assert all(y == 0.5 for _, y, _ in found)
    assert found[0][0] == 4.5
    gaps, _ = thinned([(0.0, None), (1.0, None), (2.0, 3.0), (3.0, None)], limit=2)
    assert [y for _, y, _ in gaps] == [None, 3.0]
    assert thinned([], limit=5) == ([], 1)


def test_the_chart_says_in_words_what_it_shows():
    short = draw([(1.0, 2.5, None), (2.0, 1.5, None)], levels=[Level("floor", 0.5)])
    assert short.description == "loss over step. one: 2.5 at 1, 1.5 at 2; floor: 0.5."
    long = draw([(float(i), float((i - 6) ** 2), None) for i in range(12)])
    expected = "first 36 at 0, lowest 0 at 6, highest 36 at 0, last 25 at 11"
    assert expected in long.description
    root = Picture(short).root
    assert (root.get("role"), root.get("aria-label")) == ("img", short.description)


def test_the_legend_names_each_curve_beside_a_piece_of_it():
    series = [Series(f"_curve {i}", climb([1.0, 2.0]), i, lines=i != 3) for i in range(8)]
    found = Picture(Chart("all", series, "x"))
    names = ["".join(text.itertext()) for text in found.legend.iter("text")]
    assert names == [f"_curve {i}" for i in range(8)]
    entries = [group for group in found.legend if group.find(".//use") is not None]
    looks = [(use.get("href"), properties(use)["fill"]) for use in found.legend.iter("use")]
    assert len(set(looks[:6])) == page_charts.NUM_STYLES == 6 and looks[6:] == looks[:2]
    assert [entry.find("path") is None for entry in entries] == [i == 3 for i in range(8)]
    assert found.legend_is_inside
    assert Picture(draw(climb([1.0, 2.0]))).legend is None, "a single curve needs none"


def test_long_names_are_wrapped_and_cut():
    chart = Chart("all", [Series("long" * 500, climb([1.0]), i) for i in range(2)], "x")
    found = Picture(chart)
    assert len(list(found.legend.iter("text"))) == 6
    assert max(map(len, found.texts)) <= page_charts.LEGEND_LETTERS
    assert found.legend_is_inside
    assert "long" * 500 in chart.description


def test_names_of_strangers_stay_text():
    series = [Series(HOSTILE, climb([1.0, 2.0])), Series("other", climb([1.0, 2.0]))]
    chart = Chart(HOSTILE, series, HOSTILE, x_values=[(0.0, HOSTILE)])
    found = Picture(chart)
    assert SHOWN in found.texts, "the label of the x axis"
    assert found.texts[0] == SHOWN, "a tick's"
    assert "".join(t.replace("\n", "") for t in found.texts).count("alert(1)</script>") == 3
    assert found.marks[0][2] == f"{SHOWN}: 1 at {SHOWN}"
    assert found.root.get("aria-label").startswith(f"{SHOWN} over {SHOWN}. {SHOWN}: 1 at {SHOWN}, ")
    assert "<script" not in chart.svg("name")
    chart.svg("name").encode()


def test_it_loads_nothing_and_styles_nothing_else():
    text = draw(climb([1.0, 2.0]), levels=[Level("floor", 1.5, 0.1)]).svg("name")
    for piece in ("http", "url(", "<style", "<!", "<?", "font-family", "xmlns", "clip"):
        assert piece not in text
    assert set(re.findall(r'href="([^"]*?)[0-9a-f]*"', text)) == {"#name-"}
    ids = re.findall(r' id="(.*?)"', text)
    assert ids and len(set(ids)) == len(ids) and all(x.startswith("name-") for x in ids)


def test_its_colours_are_the_pages():
    series = [Series(str(i), climb([1.0, 2.0]), i) for i in range(6)]
    text = Chart("all", series, "x", levels=[Level("floor", 1.5, 0.1)]).svg("name")
    assert not re.search("#[0-9a-f]{6}|rgb|black|white", re.sub('(id|href)="[^"]*"', "", text))
    used = set(re.findall(r"var\((--\w+)\)", text))
    style = (ROOT / "dimo_jax/evaluation/report/templates/style.css").read_text()
    light, dark = (set(re.findall(r"(--\w+):", part)) for part in style.split("@media", 2)[:2])
    assert used == {*(f"--s{i}" for i in range(6)), "--quiet", "--line", "--card"}
    assert used <= light and used <= dark


SCRIPT = """
import sys
from dimo_jax.evaluation.report import compare
from dimo_jax.evaluation.report.page_charts import Chart, Level, Series
assert "matplotlib" not in sys.modules, "a command's start would wait for it"
series = [Series("one $x$", [(float(i), 0.1 * i, 0.5) for i in range(5)], i) for i in range(3)]
print(Chart("all", series, "step", [Level("floor", 1.5, 0.1)]).svg("name"))
assert "matplotlib.pyplot" not in sys.modules
"""


def test_equal_charts_are_equal_bytes_wherever_they_are_drawn(tmp_path):
    own = tmp_path / "matplotlibrc"
    own.write_text("text.usetex: True\nlines.linewidth: 9\nsvg.fonttype: path\nfont.size: 30\n")
    places = (
        {"HOME": str(tmp_path), "PYTHONHASHSEED": "1", "LC_ALL": "C"},
        {"HOME": "/dev/null", "PYTHONHASHSEED": "2", "MATPLOTLIBRC": str(own), "TZ": "Asia/Tokyo"},
    )
    texts = []
    for place in places:
        command = [sys.executable, "-W", "error", "-c", SCRIPT]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MPL", "XDG"))}
        done = subprocess.run(
            command, env=kept | place, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        texts.append(done.stdout)
    assert texts[0] == texts[1] and "one $x$" in texts[0]
