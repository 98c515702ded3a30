import json
import math
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dimo_jax.common.errors import InputError
from dimo_jax.training import metrics as metrics_lib
from dimo_jax.training.metrics import Metrics


def record(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_json_objects_in_order(tmp_path):
    metrics = Metrics(tmp_path / "new", tensorboard=False)
    metrics.write(1, {"train/loss": jnp.float32(0.5), "n": 3}, "pretrain")
    metrics.write(2, {"train/loss": math.nan}, "distill")
    expected = [
        {"stage": "pretrain", "step": 1, "train/loss": 0.5, "n": 3.0},
        {"stage": "distill", "step": 2, "train/loss": None},
    ]
    assert record(tmp_path / "new") == expected
    assert metrics_lib.read(tmp_path / "new") == expected
    with pytest.raises(ValueError, match="step"):
        metrics.write(3, {"step": 1.0}, "distill")


def test_rewind_drops_later_lines_of_its_stage_only(tmp_path):
    metrics = Metrics(tmp_path, tensorboard=False)
    for stage in ("pretrain", "distill"):
        for step in (0, 10, 20):
            metrics.write(step, {}, stage)
    metrics.rewind("distill", 10)
    kept = [("pretrain", 0), ("pretrain", 10), ("pretrain", 20), ("distill", 0), ("distill", 10)]
    assert [(r["stage"], r["step"]) for r in record(tmp_path)] == kept
    metrics.rewind("pretrain", -1)
    assert [(r["stage"], r["step"]) for r in record(tmp_path)] == kept[3:]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("torn", ['{"stage": "a", "st', '{"stage": "a", "step": 2}', "\x00\x00"])
def test_a_torn_last_line_is_repaired(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "a", "step": 1}\n' + torn)
    Metrics(tmp_path, tensorboard=False).write(2, {"x": 1.0}, "a")
    assert record(tmp_path) == [
        {"stage": "a", "step": 1},
        {"stage": "a", "step": 2, "x": 1.0},
    ]


def test_damage_elsewhere_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(InputError, match="line 2"):
        metrics_lib.read(tmp_path)


def test_images_are_png_files(tmp_path):
    metrics = Metrics(tmp_path, tensorboard=False)
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    color = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    metrics.images(70, {"gray": gray, "color": color}, "distill")
    directory = tmp_path / "images" / "distill"
    np.testing.assert_array_equal(Image.open(directory / "gray_0000070.png"), gray[..., 0])
    np.testing.assert_array_equal(Image.open(directory / "color_0000070.png"), color)


def test_without_clu_one_notice_and_the_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "clu.metric_writers", None)
    metrics = Metrics(tmp_path, tensorboard=True)
    for step in range(3):
        metrics.write(step, {"x": 1.0}, "a")
    metrics.close()
    assert len(record(tmp_path)) == 3
    assert capsys.readouterr().err.count("no TensorBoard files") == 1


def test_a_failing_writer_never_fails_the_run(tmp_path, monkeypatch, capsys):
    class Full:
        def __init__(self, directory):
            pass

        def write_scalars(self, step, values):
            raise OSError("no space left")

    broken = types.SimpleNamespace(SummaryWriter=Full)
    monkeypatch.setitem(sys.modules, "clu.metric_writers", broken)
    metrics = Metrics(tmp_path, tensorboard=True)
    for step in range(3):
        metrics.write(step, {"x": 1.0}, "a")
    assert len(record(tmp_path)) == 3
    assert capsys.readouterr().err.count("no space left") == 1


def test_event_files_hold_scalars_and_images(tmp_path):
    metrics = Metrics(tmp_path, tensorboard=True)
    metrics.write(7, {"train/loss": 0.25}, "pretrain")
    metrics.images(7, {"samples": np.full((4, 4, 1), 9, np.uint8)}, "pretrain")
    metrics.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(tmp_path / "tensorboard" / "pretrain"))
    events.Reload()
    tags = events.Tags()["tensors"]
    assert "train/loss" in tags and any(tag.startswith("samples") for tag in tags)
    (loss,) = events.Tensors("train/loss")
    assert loss.step == 7 and make_ndarray(loss.tensor_proto) == 0.25
