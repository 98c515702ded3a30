import pytest

from dimo_jax.evaluation.report import page_charts
from dimo_jax.evaluation.report.page_axes import Axis, number
from dimo_jax.evaluation.report.page_charts import Level, Series, chart, thinned


def draw(points, **options):
    options = {"x_label": "step", "y_label": "loss"} | options
    return chart("loss", [Series("one", points)], **options)


def places(path):
    """[(x, y)] of a path of straight lines."""
    return [tuple(map(float, pair.split())) for pair in path[1:].split("L")]


def test_points_lie_where_their_values_are():
    points = [(0.0, 0.0, None), (50.0, 2.0, None), (100.0, 4.0, None)]
    found = draw(points)
    (x0, y0), (x1, y1), (x2, y2) = places(found.drawn[0].lines[0])
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.02)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.02)
    assert y0 > y1 > y2, "larger values are higher up"
    assert found.left <= x0 and x2 <= found.right and found.top <= y2 and y0 <= found.bottom
    # The tick with a value's number stands at the value.
    ticks = {tick.text: tick.at for tick in found.y_ticks}
    assert ticks["2"] == pytest.approx(y1, abs=0.02)
    assert {tick.text: tick.at for tick in found.x_ticks}["100"] == pytest.approx(x2, abs=0.02)


def test_a_missing_value_is_a_gap():
    y = [1.0, 2.0, None, float("nan"), 3.0, 4.0, 2.0]
    found = draw([(float(i), value, None) for i, value in enumerate(y)])
    assert [len(places(line)) for line in found.drawn[0].lines] == [2, 3]
    assert len(found.drawn[0].marks) == 5
    assert "nan" not in repr(found).lower()


@pytest.mark.parametrize(
    "points", [[], [(1.0, None, None)], [(1.0, float("inf"), None), (2.0, None, 0.5)]]
)
def test_without_a_finite_value_there_is_no_chart(points):
    assert draw(points) is None


def test_absurd_values_draw_without_overflow():
    points = [(0.0, 1e300, None), (1.0, 1e-320, None), (2.0, 9e99, 1e99), (3.0, -1e308, 1.0)]
    assert len(draw(points).drawn[0].marks) == 2
    small = draw([(0.0, 1e-15, None), (1.0, 4e-15, None)])
    assert [tick.text for tick in small.y_ticks][:2] == ["1e-15", "2e-15"]


def test_one_point_stands_in_the_middle():
    found = draw([(3.0, 7.0, None)])
    path = found.drawn[0].marks[0].path
    assert path and "nan" not in path and not found.drawn[0].lines
    assert [tick.text for tick in found.y_ticks]


def test_bars_and_bands_show_the_spread():
    found = draw([(1.0, 2.0, 1.0), (2.0, 4.0, 0.0)], levels=[Level("floor", 3.0, 1.0)])
    level, series = found.drawn
    assert len(series.bars) == 1
    low, high = (float(y) for y in series.bars[0].partition(" ")[2].split("V"))
    top, height = level.band
    assert height == pytest.approx(low - high, abs=0.05), "both are of one unit to either side"
    assert places(series.lines[0])[0][1] == pytest.approx((low + high) / 2, abs=0.05)
    (_, y1), (_, y2) = places(series.lines[0])
    assert top + height / 2 == pytest.approx((y1 + y2) / 2, abs=0.05), "3 is between 2 and 4"


def test_steps_are_spaced_by_their_logarithm():
    points = [(float(n), 1.0 / n, None) for n in (1, 2, 4, 16)]
    found = draw(points, x_log=True, x_values=[(x, f"{x:g}") for x, _, _ in points])
    at = [tick.at for tick in found.x_ticks]
    assert [tick.text for tick in found.x_ticks] == ["1", "2", "4", "16"]
    unit = at[1] - at[0]
    assert at[2] - at[1] == pytest.approx(unit, abs=0.02)
    assert at[3] - at[2] == pytest.approx(2 * unit, abs=0.02)


def test_a_wide_range_gets_a_logarithmic_axis_and_says_so():
    points = [(float(i), 10.0**i, None) for i in range(4)]
    wide = draw(points)
    assert wide.log
    heights = [y for _, y in places(wide.drawn[0].lines[0])]
    assert heights[0] - heights[1] == pytest.approx(heights[2] - heights[3], abs=0.02)
    assert not draw(points, y_log=False).log
    assert not draw([(0.0, 1.0, None), (1.0, 20.0, None)]).log
    assert not draw([(0.0, -1.0, None), (1.0, 2000.0, None)]).log


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 2.5, ["0", "0.5", "1", "1.5", "2", "2.5"]),
        (0.0, 12.0, ["0", "2", "4", "6", "8", "10", "12"]),
        (0.0, 1200.0, ["0", "200", "400", "600", "800", "1,000", "1,200"]),
        (15.3, 16.7, ["15.5", "15.75", "16", "16.25", "16.5"]),
        (1000.0, 1001.0, ["1,000", "1,000.2", "1,000.4", "1,000.6", "1,000.8", "1,001"]),
        (0.0, 0.0021, ["0", "5e-4", "0.001", "0.0015", "0.002"]),
        (-0.3, 0.3, ["-0.3", "-0.2", "-0.1", "0", "0.1", "0.2", "0.3"]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert [tick.text for tick in Axis(low, high, 0.0, 100.0).ticks()] == expected


@pytest.mark.parametrize(("low", "high"), [(1e-9, 1e3), (0.02, 1.1), (0.9, 31.0), (1e-300, 1e300)])
def test_logarithmic_ticks_are_few_and_inside(low, high):
    ticks = Axis(low, high, 0.0, 100.0, log=True).ticks()
    assert 2 <= len(ticks) <= 8
    assert all(-0.1 <= tick.at <= 100.1 for tick in ticks)


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


def test_every_style_has_a_mark_of_its_own():
    series = [Series(str(i), [(0.0, 1.0, None)], i) for i in range(8)]
    found = chart("all", series, x_label="x", y_label="y")
    samples = [entry.sample for entry in found.drawn]
    assert len(set(samples[: page_charts.NUM_STYLES])) == page_charts.NUM_STYLES
    assert samples[6:] == samples[:2] and [entry.style for entry in found.drawn][6:] == [0, 1]
