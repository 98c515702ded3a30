"""Which checkpoints stay, and reading them while a run goes on."""

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dimo_jax.common.errors import InputError
from dimo_jax.config import default_config, validation
from dimo_jax.training import saved
from dimo_jax.training.loop import Observer
from dimo_jax.training.retention import Retention, best_of
from tests.helpers.checkpoint_state import make_state, opening
from tests.helpers.stage_run import Run, add, batch_of, create_state


@pytest.fixture
def opened(tmp_path):
    yield from opening(tmp_path)


def test_the_newest_the_regular_and_the_best_stay():
    retention = Retention(2, every_steps=10, best=2)
    for step, figure in {3: 5.0, 4: 1.0, 6: 4.0, 12: 2.0, 15: math.nan, 18: 9.0}.items():
        retention.note(step, {"fid_5k": figure})
    steps = [3, 4, 6, 10, 12, 15, 18, 20]
    assert retention.kept(steps) == {18, 20} | {10, 20} | {4, 12}
    assert not retention.is_best({"fid_5k": 2.0}, steps) and not retention.is_best({}, steps)
    assert retention.is_best({"fid_5k": 1.9}, steps)
    assert not retention.is_best({"fid_5k": math.nan}, steps)
    # Of other samples: a figure that cannot be compared.
    retention.note(20, {"fid_10k": 7.0})
    assert retention.kept(steps) == {18, 20} | {10, 20}
    assert retention.is_best({"fid_10k": 99.0}, steps)
    assert best_of({1: 2.0, 2: 1.0, 3: 1.0, 4: math.inf}, 2) == {2: 1.0, 3: 1.0}
    assert Retention(1).kept([1, 2, 3]) == {3}


FIGURES = {1: 9.0, 2: 3.0, 3: 8.0, 4: 5.0, 5: 1.0, 6: 7.0, 7: 2.0, 8: 6.0, 9: 4.0, 10: 5.0}


def run_measured(workdir, capsys, num_steps, **options):
    run = Run(workdir, capsys)
    observer = Observer(1, lambda _, step: ({}, {"interim/x_4": FIGURES[step]}), ranks=True)
    run(num_steps, keep=Retention(1, every_steps=6, best=2), observers=[observer], **options)
    return run.saved_steps()


def test_the_best_are_saved_when_they_are_measured_and_survive_a_resume(tmp_path, capsys):
    whole = run_measured(tmp_path / "whole", capsys, 10)
    assert whole == [5, 6, 7, 10]
    assert run_measured(tmp_path / "two", capsys, 4) == [2, 4]
    assert run_measured(tmp_path / "two", capsys, 10) == whole
    place = tmp_path / "two" / "ck"
    assert saved.figures(place) == {5: 1.0, 6: 7.0, 7: 2.0, 10: 5.0}
    step, total = saved.read_part(place, "best", "total")
    assert (step, float(total)) == (5, 15.0)


def test_without_a_figure_none_is_the_best(opened):
    checkpoints = opened()
    checkpoints.save(1, make_state(1), {})
    checkpoints.wait()
    with pytest.raises(InputError, match="nothing was measured .*--config.checkpoint.keep_best"):
        saved.read_part(Path(checkpoints.directory), "best", "params")


def test_reading_changes_nothing_and_leaves_the_rest_unread(opened, monkeypatch):
    checkpoints = opened()
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {"n": step})
    checkpoints.wait()
    place = Path(checkpoints.directory)
    # What a save under way, or a killed one, has there.
    (place / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    before = {x: x.stat().st_mtime_ns for x in place.rglob("*")} | {place: place.stat().st_mtime_ns}
    assert saved.steps(place) == [1, 2] and saved.meta(place, 1)["n"] == 1
    step, found = saved.read_part(place, "newest", "params")
    assert step == 2 and set(found) == {"kernel", "half", "frozen"}
    for name, leaf in found.items():
        assert isinstance(leaf, np.ndarray)
        np.testing.assert_array_equal(leaf, np.asarray(make_state(2).params[name]))
    assert saved.read_part(place, 1, "step")[1] == 1
    after = {x: x.stat().st_mtime_ns for x in place.rglob("*")} | {place: place.stat().st_mtime_ns}
    assert after == before
    with pytest.raises(InputError, match="no checkpoint of step 7 in .*; there are now 1, 2: give"):
        saved.read_part(place, 7, "params")
    with pytest.raises(InputError, match="no checkpoint in .* yet; the run saves the first after"):
        saved.read_part(place / "nothing", "newest", "params")
    assert not (place / "nothing").exists()


def removing(place, steps, monkeypatch):
    """Lets the run remove a checkpoint in the middle of reading it, for each of the steps."""
    read, left = saved.checksums.check, list(steps)

    def remove_and_read(folder, required):
        if left and Path(folder).parent.name == str(left[0]):
            shutil.rmtree(place / str(left.pop(0)))
        read(folder, required)

    monkeypatch.setattr(saved.checksums, "check", remove_and_read)


def test_one_that_is_removed_meanwhile_is_a_sentence_or_the_next_one(opened, monkeypatch):
    checkpoints = opened(keep=5)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, make_state(step), {})
    checkpoints.wait()
    place = Path(checkpoints.directory)
    removing(place, [4, 1], monkeypatch)
    step, found = saved.read_part(place, "newest", "step")
    assert (step, int(found)) == (3, 3)
    with pytest.raises(InputError) as caught:
        saved.read_part(place, 1, "step")
    assert f"checkpoint {place}/1 was removed by its run while it was read" in str(caught.value)
    assert "there are now 2, 3: give one of them as --step" in str(caught.value)


def test_a_damaged_one_is_named_with_those_that_there_are(opened, monkeypatch):
    monkeypatch.setattr(saved, "REMOVAL_SECONDS", 0.1)
    checkpoints = opened()
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {})
    checkpoints.wait()
    place = Path(checkpoints.directory)
    path = max((place / "2" / "state").rglob("d/*"), key=os.path.getsize)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError) as caught:
        saved.read_part(place, "newest", "params")
    assert f"checkpoint {place}/2 cannot be read" in str(caught.value)
    assert "there are now 1: give one of them as --step" in str(caught.value)


def test_a_stage_without_checkpoints_worth_keeping_is_refused():
    for changes, complaint in (
        (
            {"keep_every_steps": 700},
            "keep_every_steps is 700, no multiple of save_every_steps .500",
        ),
        ({"keep_best": 1}, "no distance is measured in training; give --config.interim.every_st"),
        ({"keep_best": -1}, "keep_best is -1; it must be a whole number, at least 0"),
    ):
        config = default_config()
        config.checkpoint.update(changes)
        with pytest.raises(InputError, match=complaint):
            validation.validate(config.to_dict())
    config = default_config()
    config.checkpoint.update({"keep_best": 1, "keep_every_steps": 1000})
    config.interim.every_steps = 100
    validation.validate(config.to_dict())


def test_a_figure_that_is_not_finite_is_kept_out(tmp_path, capsys):
    run = Run(tmp_path, capsys)
    observer = Observer(1, lambda _, step: ({}, {"x": math.nan if step < 3 else 1.0}), ranks=True)
    run(4, keep=Retention(1, best=1), observers=[observer], save_every_steps=1)
    assert run.saved_steps() == [3, 4]


def test_an_unranked_observer_saves_nothing(tmp_path, capsys):
    run = Run(tmp_path, capsys)
    observer = Observer(1, lambda _, step: ({}, {"x": 1.0 / step}))
    run(
        5,
        add,
        batch_of,
        Retention(1, best=1),
        create_state,
        observers=[observer],
        save_every_steps=5,
    )
    assert run.saved_steps() == [5]
