"""The record of a run in an object store, which cannot append: here one that counts its writes."""

import contextlib
from pathlib import Path

import pytest

from dimo_jax.common import files
from dimo_jax.training import metrics as metrics_lib
from dimo_jax.training.checkpoints import Checkpoints
from dimo_jax.training.loop import run_stage
from dimo_jax.training.metrics import Metrics
from tests.helpers.stage_run import add, batch_of, create_state


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def writes(monkeypatch):
    """Every local folder counts as an object store; the contents that were written, in order."""
    found = []
    monkeypatch.setattr(files, "is_remote", lambda place: "disk" not in Path(place).parts)

    def write(path, data):
        found.append(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    monkeypatch.setattr(files, "path", Path)
    monkeypatch.setattr(files, "write_file", write)
    return found


def steps(writes):
    return [data.count(b"\n") for data in writes]


def test_the_record_is_written_from_time_to_time_and_when_it_must_be(tmp_path, writes):
    clock = Clock()
    record = metrics_lib._Stored(tmp_path / "metrics.jsonl", clock)
    for second in range(1, 63):
        clock.seconds = second
        record.append({"stage": "a", "step": second})
    assert steps(writes) == [30, 60]
    record.flush()
    record.flush()
    assert steps(writes) == [30, 60, 62]
    clock.seconds = 91
    record.append({"stage": "a", "step": 63})
    clock.seconds = 92
    record.append({"stage": "a", "step": 64})
    assert steps(writes) == [30, 60, 62, 64]


def test_lines_are_those_of_a_disk(tmp_path, writes):
    for place in (tmp_path / "store", tmp_path / "disk"):
        metrics = Metrics(place, tensorboard=False)
        for step in (1, 2, 3):
            metrics.write(step, {"loss": 0.1 * step, "bad": float("nan")}, "pretrain")
        metrics.rewind("pretrain", 2)
        assert [line["step"] for line in metrics_lib.read(place)] == [1, 2]
        metrics.write(1, {"x": 1.0}, "distill")
        metrics.close()
    assert metrics_lib.read(tmp_path / "store") == metrics_lib.read(tmp_path / "disk")
    both = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("store", "disk")]
    assert both[0] == both[1] and both[0].count(b"\n") == 3


def test_a_killed_run_goes_on_from_what_was_there_with_its_checkpoint(tmp_path, writes):
    first = Metrics(tmp_path, tensorboard=False)
    for step in (2, 4, 6):
        first.write(step, {"x": step}, "a")
        if step == 4:
            first.flush()
    del first  # killed: step 6 was never written
    second = Metrics(tmp_path, tensorboard=False)
    second.rewind("a", 4)
    second.write(6, {"x": 6}, "a")
    second.close()
    found = [(line["step"], line["x"]) for line in metrics_lib.read(tmp_path)]
    assert found == [(2, 2.0), (4, 4.0), (6, 6.0)]


def test_before_every_checkpoint_the_record_is_there(tmp_path, writes, monkeypatch):
    seen = []
    save = Checkpoints.save

    def look(self, step, *arguments):
        seen.append((step, [line["step"] for line in metrics_lib.read(tmp_path)]))
        save(self, step, *arguments)

    monkeypatch.setattr(Checkpoints, "save", look)
    with contextlib.closing(Checkpoints(tmp_path / "disk" / "ck", 5)) as checkpoints:
        run_stage(
            *("stage", create_state, add, batch_of, 6),
            checkpoints=checkpoints,
            metrics=Metrics(tmp_path, tensorboard=False),
            meta={},
            log_every_steps=1,
            save_every_steps=3,
        )
    assert seen == [(3, [1, 2, 3]), (6, [1, 2, 3, 4, 5, 6])]
