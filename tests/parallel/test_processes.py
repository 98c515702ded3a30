"""Two processes are one run: the same numbers as one process, and they stop and end together."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from dimo_jax.training import metrics
from tests.helpers import ROOT
from tests.helpers.recorded import recorded_steps

# On one worker, which makes the fixtures once.
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("processes")]

NUM_STEPS, SAVE_EVERY = 20, 5


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    """(directory, {life: what the driver says of each of its processes})."""
    root = tmp_path_factory.mktemp("processes")
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    result = subprocess.run(
        [sys.executable, "-m", "tests.helpers.processes_driver", str(root)],
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr
    told = {}
    for line in result.stdout.splitlines():
        process = json.loads(line)
        told.setdefault(process["life"], []).append(process)
    return root, told


def statuses(life):
    return [process["status"] for process in life]


def record(workdir):
    return [
        {key: x for key, x in line.items() if not key.startswith("time/")}
        for line in metrics.read(workdir)
    ]


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_two_processes_compute_what_one_does(lives):
    root, told = lives
    assert statuses(told["one"]) == [0], told["one"][0]["stderr"]
    assert statuses(told["two"]) == [0, 0], told["two"]
    one, two = record(root / "one"), record(root / "two")
    assert [line["step"] for line in one] == list(range(1, NUM_STEPS + 1))
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        np.testing.assert_allclose(list(a.values())[2:], list(b.values())[2:], rtol=1e-6, atol=1e-6)
    first, second = (np.load(root / name / "final.npz") for name in ("one", "two"))
    assert set(first.files) == set(second.files) and len(first.files) == 11
    for name in first.files:
        np.testing.assert_allclose(first[name], second[name], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(first["draws"], second["draws"])
    assert np.ptp(first["draws"]) > 1


def test_each_process_reads_its_share_of_a_batch_alone(lives):
    root, _ = lives
    one = json.loads((root / "one" / "read.0.json").read_text())
    two = [json.loads((root / "two" / f"read.{index}.json").read_text()) for index in (0, 1)]
    assert [len(batch) for batch in one] == [16] * NUM_STEPS
    for whole, *shares in zip(one, *two, strict=True):
        assert [len(share) for share in shares] == [8, 8]
        assert sorted(shares[0] + shares[1]) == sorted(whole)


def test_each_process_records_itself_in_one_session(lives):
    root, _ = lives
    files = sorted((root / "two" / "profile" / "plugins" / "profile" / "fit_step_3").iterdir())
    assert [path.name for path in files] == ["process_0.xplane.pb", "process_1.xplane.pb"]
    assert [recorded_steps(path, "fit") for path in files] == [[3, 4], [3, 4]]


def test_sigterm_to_one_stops_both_at_the_same_step_with_status_0(lives):
    root, told = lives
    assert statuses(told["terminated"]) == [0, 0], told["terminated"]
    steps = []
    for process in told["terminated"]:
        found = re.findall(r"all 2 processes stopped.* at step (\d+) of 20", process["stderr"])
        assert len(found) == 1, process["stderr"]
        steps.append(int(found[0]))
    assert 3 < steps[0] == steps[1] < NUM_STEPS
    assert f"fit: continues at step {steps[0]} of 20" in told["other_lost"][0]["stderr"]


@pytest.mark.parametrize(
    ("life", "killed", "killed_at", "next_life"),
    [("other_lost", 1, 13, "lead_lost"), ("lead_lost", 0, 17, "rest")],
)
def test_the_death_of_one_ends_the_other_in_a_sentence(lives, life, killed, killed_at, next_life):
    _, told = lives
    dead, left = told[life][killed], told[life][1 - killed]
    assert dead["status"] == -signal.SIGKILL
    assert left["status"] == 1 and left["seconds"] < 60, left
    # From the collective that failed, or from the runtime's abort: which comes first is chance.
    sentence = r"error: .*another (of the 2 processes|process of the run) has ended.*; start all of"
    assert re.match(sentence, left["stderr"].strip().splitlines()[-1]), left["stderr"]
    assert "Traceback" not in left["stderr"]
    # What is lost is less than one interval.
    (start,) = re.findall(r"continues at step (\d+)", told[next_life][0]["stderr"])
    assert killed_at - SAVE_EVERY <= int(start) <= killed_at


@pytest.mark.parametrize("index, name", [(0, "lead"), (1, "other")])
def test_a_save_that_fails_on_one_ends_both_at_once(lives, index, name):
    root, told = lives
    failed, left = told[f"{name}_unwritable"][index], told[f"{name}_unwritable"][1 - index]
    assert failed["status"] == 2 and left["status"] == 1, (failed, left)
    # With the start of both; Orbax's own barriers wait for 5 or 20 minutes.
    assert max(failed["seconds"], left["seconds"]) < 60
    place = f"{root}/{name}_unwritable/checkpoints"
    *_, last = failed["stderr"].strip().splitlines()
    assert last.startswith(f"error: checkpoint {place}/10 cannot be written: OSError: [Errno 16]")
    assert "the one of step 5 stays valid" in last
    # XLA's own log of the lost connection may come after it.
    *_, last = [line for line in left["stderr"].splitlines() if line.startswith("error: ")]
    assert re.search(r"another (of the 2 processes|process of the run) has ended", last)


def test_the_run_of_many_lives_ends_in_the_same_bits(lives):
    root, told = lives
    assert statuses(told["rest"]) == [0, 0], told["rest"]
    whole, ended = (np.load(root / name / "final.npz") for name in ("two", "ended"))
    for name in whole.files:
        np.testing.assert_array_equal(whole[name], ended[name])
    assert record(root / "ended") == record(root / "two")
    assert saved_steps(root / "ended") == saved_steps(root / "two") == [15, 20]


def test_only_the_lead_speaks_of_progress(lives):
    _, told = lives
    lead, other = told["two"]
    assert "fit 20/20" in lead["stderr"] and "fit" not in other["stderr"]


def test_processes_that_disagree_refuse_to_start(lives):
    root, told = lives
    assert statuses(told["differing"]) == [2, 2], told["differing"]
    for process in told["differing"]:
        assert "seed is 1 on process 1 and 0 on process 0; start all" in process["stderr"]
    assert not (root / "differing").exists()
