import io

import pytest

from dimo_jax.common.progress import Progress, format_seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    "seconds, text",
    [(0.9, "0 s"), (59.9, "59 s"), (187, "3:07 min"), (3599, "59:59 min"), (7500, "2:05 h")],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_rate_and_eta_count_from_the_first_call():
    stream, clock = io.StringIO(), Clock()
    progress = Progress("distill", stream=stream, every_seconds=0, clock=clock)
    progress.update(100, 300)
    clock.now += 5
    progress.update(120, 300, "loss 1.5")
    first, second = stream.getvalue().splitlines()
    assert first == "distill 100/300  33 %"
    # 20 steps in 5 s are 4 a second; 180 are left.
    assert second == "distill 120/300  40 %  4/s  ETA 45 s  loss 1.5"


def test_a_file_gets_a_line_at_intervals_and_the_last_one():
    stream, clock = io.StringIO(), Clock()
    progress = Progress("x", stream=stream, every_seconds=10, clock=clock)
    for done in range(26):  # 0, 1, ..., 25 s
        progress.update(done, 25)
        clock.now += 1
    counts = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert counts == ["0/25", "10/25", "20/25", "25/25"]


def test_a_terminal_rewrites_one_line_within_its_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    with Progress("x", stream=stream) as progress:
        progress.update(1, 3)
        progress.update(2, 3, "long " * 20)
        progress.note("half")
        progress.update(3, 3)
    parts = stream.getvalue().split("\n")
    assert [part.count("\r") for part in parts] == [2, 0, 1, 0]
    assert parts[1] == "x: half" and parts[3] == ""
    for shown in parts[0].replace("\x1b[K", "").split("\r"):
        assert len(shown) < 30


def test_silent_prints_nothing():
    stream = Terminal()
    with Progress("x", stream=stream, silent=True) as progress:
        progress.update(1, 1)
        progress.note("done")
    assert stream.getvalue() == ""
