"""Ranges on disk: what is missing or damaged is made, once, by the process whose turn it is."""

import io

import pytest

from dimo_jax.common import files, resumable
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress


def store_in(folder, **options):
    parts = resumable.ranges(10, 4)
    return resumable.Store({part: folder / f"{part[0]}" for part in parts}, "images", **options)


def fill(store, process=(0, 1), stop_after=9):
    """(made ranges, what was returned, lines printed) of one command that may be killed."""
    made, stream = [], io.StringIO()

    def make(left):
        for part in left:
            if len(made) == stop_after:
                raise KeyboardInterrupt
            files.write_file(store.paths[part], str(part).encode())
            made.append(part)
            yield part[1] - part[0]

    try:
        filled = store.fill(make, Progress("x", stream=stream), process)
    except KeyboardInterrupt:
        filled = None
    return made, filled, stream.getvalue().splitlines()


def test_the_last_range_is_the_rest():
    assert resumable.ranges(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert resumable.ranges(8, 4) == [(0, 4), (4, 8)]
    assert resumable.ranges(0, 4) == []


def test_a_killed_command_goes_on_and_a_finished_one_makes_nothing(tmp_path):
    store = store_in(tmp_path)
    assert fill(store, stop_after=1)[:2] == ([(0, 4)], None)
    made, filled, lines = fill(store)
    assert (made, filled) == ([(4, 8), (8, 10)], (4, 10))
    assert lines[:2] == ["x: goes on: 4 of 10 images are there already", "x 4/10  40 %  images"]
    assert lines[-1].startswith("x 10/10  100 %")
    assert fill(store)[:2] == ([], (10, 10))


def test_a_damaged_range_is_made_again(tmp_path):
    paths = store_in(tmp_path).paths
    store = store_in(tmp_path, is_whole=lambda x: paths[x].exists() and paths[x].stat().st_size > 2)
    fill(store)
    paths[4, 8].write_bytes(b"(")
    paths[8, 10].unlink()
    made, filled, lines = fill(store)
    assert (made, filled) == ([(4, 8), (8, 10)], (4, 10))
    assert f"x: 1 damaged files, {paths[4, 8]} for one, are made again" in lines


@pytest.mark.parametrize(
    "group, expected", [(1, [[(0, 4), (8, 10)], [(4, 8)]]), (2, [[(0, 4), (4, 8)], [(8, 10)]])]
)
def test_processes_share_the_ranges(tmp_path, group, expected):
    store = store_in(tmp_path, group=group)
    assert [fill(store, (index, 2))[0] for index in (0, 1)] == expected
    assert all(path.exists() for path in store.paths.values())


def test_settings_are_those_that_the_work_was_begun_with(tmp_path):
    place = tmp_path / "settings.json"
    settings = {"seed": 1, "sampler": {"steps": 8}, "sizes": (1, 2)}
    assert not resumable.compare(place, settings, "the work")
    resumable.record(place, settings)
    assert resumable.compare(place, settings, "the work")
    message = rf"^the work was begun with other settings: num, seed; give those of {place} again"
    with pytest.raises(InputError, match=message):
        resumable.compare(place, {**settings, "seed": 2, "num": 3}, "the work")
    place.write_text("{")
    with pytest.raises(InputError, match="settings.json is not JSON"):
        resumable.compare(place, settings, "the work")


def test_what_is_not_its_own_is_named(tmp_path):
    assert resumable.foreign(tmp_path / "none", str.isdigit) is None
    for name in ("4", ".8.0123456789ab.writing"):
        (tmp_path / name).touch()
    assert resumable.foreign(tmp_path, str.isdigit) is None
    (tmp_path / "thesis").touch()
    assert resumable.foreign(tmp_path, str.isdigit) == "thesis"
