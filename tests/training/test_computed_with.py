"""A resume with other versions says so once; a checkpoint knows what it was computed with."""

import json

import jax
import pytest

from dimo_jax.common import versions
from dimo_jax.parallel import distributed
from dimo_jax.training import computed_with
from tests.helpers.stage_run import Run

NOTE = "from here on the bits may differ"


@pytest.fixture
def run(tmp_path, capsys):
    return Run(tmp_path, capsys)


@pytest.fixture
def pretend(monkeypatch):
    real = versions.installed()
    return lambda **other: monkeypatch.setattr(versions, "installed", lambda: real | other)


def history(run, step):
    """The history in the newest file of a checkpoint that has one."""
    (path,) = (run.workdir / "ck" / str(step) / "meta").glob("metadata")
    return json.loads(path.read_text())["versions"]


def test_a_checkpoint_says_what_it_was_computed_with(run):
    run(num_steps=3)
    (stretch,) = history(run, 3)
    assert stretch == {
        "from_step": 0,
        **versions.installed(),
        "code": distributed.code_version(),
        "device": jax.devices()[0].device_kind,
    }
    run(num_steps=6)
    assert history(run, 6) == [stretch]
    assert NOTE not in run.capsys.readouterr().err


def test_a_resume_with_other_versions_is_said_once_and_recorded(run, pretend):
    run(num_steps=3)
    pretend(jax="9.9.9", numpy="8.8.8")
    run(num_steps=6)
    err = run.capsys.readouterr().err
    assert err.count(NOTE) == 1
    assert f"jax {jax.__version__}, now 9.9.9; numpy " in err and "flax" not in err
    first, second = history(run, 6)
    assert (first["from_step"], second["from_step"]) == (0, 3)
    assert (first["jax"], second["jax"]) == (jax.__version__, "9.9.9")
    run(num_steps=9)
    assert NOTE not in run.capsys.readouterr().err
    assert history(run, 9) == [first, second]
    pretend()
    run(num_steps=9)  # finished: nothing is computed
    assert NOTE not in run.capsys.readouterr().err


@pytest.mark.parametrize("saved", [None, [], "0.10.2", [1], {"jax": "0.10.2"}])
def test_a_checkpoint_without_a_history_is_continued(saved):
    found, changes = computed_with.continued(saved, 7)
    assert found == [{"from_step": 7, **computed_with.current()}] and changes == []


def test_what_a_checkpoint_holds_does_not_reach_the_terminal():
    saved = [computed_with.current() | {"from_step": 0, "jax": "\x1b[2J"}]
    _, (change,) = computed_with.continued(saved, 7)
    assert change == f"jax \\x1b[2J, now {jax.__version__}"
