"""A run killed with SIGKILL at many moments ends in the bits of a run that was never killed."""

import json
import os
import signal
import subprocess
import sys

import pytest

from dimo_jax.training import metrics
from tests.helpers import ROOT

# On one worker, which makes the fixtures once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("resume")]

KILLS, NUM_STEPS, SAVE_EVERY = 20, 160, 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(directory, what the driver says of each process)."""
    root = tmp_path_factory.mktemp("resume")
    result = subprocess.run(
        [sys.executable, "-m", "tests.helpers.resume_driver", str(root), str(KILLS)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return root, [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def test_every_planned_process_was_killed_and_the_last_finished(runs):
    _, told, stderr = runs
    signals = {x["run"]: x["signal"] for x in told}
    assert signals.pop("whole") == signals.pop("rest") == 0, stderr
    assert len(signals) == KILLS and set(signals.values()) == {signal.SIGKILL}, stderr
    # At least one of them left half a checkpoint, or this would test too little.
    assert any("tmp" in name for x in told for name in x["left"])
    assert "continues at step" in stderr


def test_final_state_is_bit_equal(runs):
    root, *_ = runs
    whole = json.loads((root / "whole.json").read_text())
    rest = json.loads((root / "rest.json").read_text())
    assert whole["step"] == NUM_STEPS
    assert rest["fingerprint"] == whole["fingerprint"] and rest["step"] == whole["step"]


def test_no_corrupt_checkpoint_is_ever_offered(runs):
    root, told, _ = runs
    saved = json.loads((root / "whole.json").read_text())["saved"]
    assert list(saved) == [str(step) for step in range(SAVE_EVERY, NUM_STEPS + 1, SAVE_EVERY)]
    assert len(set(saved.values())) == len(saved)
    offered = [item for process in told for item in process["offered"].items()]
    assert set(offered) <= set(saved.items())
    assert len({step for step, _ in offered}) > 4  # or this would test too little


def test_records_are_equal_but_for_time(runs):
    root, *_ = runs

    def record(name):
        return [
            {key: x for key, x in line.items() if not key.startswith("time/")}
            for line in metrics.read(root / name)
        ]

    assert [x["step"] for x in record("whole")] == [*range(3, NUM_STEPS, 3), NUM_STEPS]
    assert record("killed") == record("whole")


def test_nothing_half_written_is_left(runs):
    root, told, _ = runs
    assert told[-1]["left"] == [str(NUM_STEPS - SAVE_EVERY), str(NUM_STEPS)]
    names = sorted(p.name for p in (root / "killed").iterdir())
    assert names == ["checkpoints", "metrics.jsonl", "offered.json"]
