"""Whole runs of shipped configs, shrunk: the commands of docs/start.md, one after the other."""

import json
import os
import signal
import time
from unittest import mock

import numpy as np
import pytest

from dimo_jax.training import metrics
from tests.helpers import object_store, wandb_files
from tests.helpers.command_line import command, finish
from tests.helpers.recorded import recorded_steps

# On one worker, which makes the fixtures once.
pytestmark = pytest.mark.xdist_group("main")

SMALL = [
    "--config=configs/digits.py:patch",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.heads=2",
    "--config.model.mlp_dim=16",
    "--config.pretrain.num_steps=12",
    "--config.pretrain.batch_size=8",
    "--config.pretrain.optimizer.warmup_steps=2",
    "--config.distill.num_steps=12",
    "--config.distill.batch_size=8",
    "--config.distill.generator.optimizer.warmup_steps=2",
    "--config.distill.auxiliary.optimizer.warmup_steps=2",
    "--config.sampler.temperature=0.7",
    "--config.checkpoint.save_every_steps=4",
    "--config.logging.log_every_steps=2",
    "--config.logging.images_every_steps=6",
    "--config.logging.tensorboard=False",
    "--config.interim.every_steps=12",
    "--config.interim.num_samples=40",
    "--config.classifier.num_steps=40",
    "--config.evaluation.num_samples=40",
    "--config.evaluation.seeds=(0,1)",
    "--config.evaluation.teacher_steps=(1,2)",
    "--config.evaluation.sweep_steps=(2,)",
    "--config.evaluation.sweep_num_samples=20",
    "--config.evaluation.choice_temperatures=(4.5,)",
    "--config.evaluation.num_pictures=10",
    "--config.evaluation.batch_size=40",
]
METRICS = {
    "frechet_features", "frechet_pixels", "accuracy", "precision", "recall", "density", "coverage",
    "duplicates", "copies", "entropy",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    out, err = finish(command("main", *SMALL, "--profile=3:2", f"--workdir={workdir}"))
    return workdir, out, err


def test_a_run_leaves_teacher_generator_report_and_record(finished):
    workdir, out, err = finished
    assert str(workdir) in out.splitlines()[-1]
    assert "ETA" in err
    results = json.loads((workdir / "report" / "results.json").read_text())
    rows = {(row["model"], row["steps"]): row for row in results["rows"]}
    assert set(rows) == {("teacher", 1), ("teacher", 2), ("generator", 1), ("test_split", 0)}
    for row in rows.values():
        assert set(row["metrics"]) == METRICS
        assert all(np.isfinite([m["mean"], m["std"]]).all() for m in row["metrics"].values())
    sampler = rows["generator", 1]["sampler"]
    assert (sampler["ratio"], sampler["temperature"]) == (0.6, 0.7)
    for name in ("seed", "versions", "device", "wall_seconds", "hashes"):
        assert results[name] is not None
    report = (workdir / "report" / "report.md").read_text()
    for picture in [w.split(")")[0] for w in report.split("](")[1:]]:
        assert (workdir / "report" / picture).is_file(), picture
    assert "<h1>" in (workdir / "report" / "report.html").read_text()
    record = metrics.read(workdir)
    assert {("pretrain", 12), ("distill", 12)} <= {(line["stage"], line["step"]) for line in record}
    interim = [line for line in record if "interim/frechet_features_40" in line]
    assert [(line["stage"], line["step"]) for line in interim] == [("distill", 12)]
    # The same network and number of samples: nothing else than the samples' seed differs.
    final = rows["generator", 1]["metrics"]["frechet_features"]["mean"]
    assert 0.5 * final < interim[0]["interim/frechet_features_40"] < 2 * final
    assert list((workdir / "images" / "distill").glob("*.png"))
    (trace,) = (workdir / "profile" / "plugins" / "profile" / "distill_step_3").iterdir()
    assert recorded_steps(trace, "distill") == [3, 4] and str(trace) in err


def test_the_same_command_again_has_nothing_to_do(finished):
    workdir, _, _ = finished
    before = (workdir / "report" / "results.json").read_bytes()
    out, _ = finish(command("main", *SMALL, f"--workdir={workdir}"))
    assert "done already" in out
    assert (workdir / "report" / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("abc", "--profile=abc is not STEP:STEPS"),
        ("10:3", "records steps 10 to 12, and the last step of the distillation is 11 (config.dis"),
    ],
)
def test_steps_that_cannot_be_recorded_are_refused_before_anything_is_written(
    tmp_path, given, words
):
    workdir = tmp_path / "run"
    _, err = finish(command("main", *SMALL, f"--profile={given}", f"--workdir={workdir}"), status=2)
    assert err.startswith("error: ") and words in err and len(err.splitlines()) == 1
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--config=configs/toy.py:pair"], "is the exact posterior of config.data.joint: leave"),
        ([*SMALL, "--config.teacher.bundle=a/b"], "is config.teacher.bundle=a/b: leave the flag"),
        ([*SMALL, "--profile=3:2"], "--profile=3:2 records the distillation, which --teacher_only"),
    ],
)
def test_teacher_only_is_refused_where_it_would_mean_nothing(tmp_path, given, words):
    workdir = tmp_path / "run"
    _, err = finish(command("main", *given, "--teacher_only", f"--workdir={workdir}"), status=2)
    assert err.startswith("error: ") and words in err and len(err.splitlines()) == 1
    assert not workdir.exists()


def test_other_settings_in_the_same_place_are_refused(finished):
    workdir, _, _ = finished
    before = (workdir / "config.json").read_bytes()
    changed = ["--config.distill.sigma=0.3", f"--workdir={workdir}"]
    _, err = finish(command("main", *SMALL, *changed), status=2)
    assert "distill.sigma" in err and err.strip().splitlines()[-1].startswith("error:")
    assert (workdir / "config.json").read_bytes() == before, "a refused start changed the record"


@pytest.mark.slow
@pytest.mark.long
def test_the_exported_generator_is_sampled_and_exported(finished, tmp_path):
    workdir, _, _ = finished
    picture = tmp_path / "grid.png"
    finish(command("sample", f"--generator={workdir}/export", f"--output={picture}"))
    assert picture.read_bytes().startswith(b"\x89PNG")
    for name in ("msgpack", "safetensors"):
        path = tmp_path / f"generator.{name}"
        finish(command("export", f"--workdir={workdir}", f"--format={name}", f"--output={path}"))
        assert path.stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.long
def test_a_bundle_replaces_the_training_of_a_teacher(finished, tmp_path):
    workdir, _, _ = finished
    given = f"--config.teacher.bundle={workdir}/teacher"
    other = tmp_path / "other"
    _, err = finish(command("main", *SMALL, given, f"--workdir={other}"))
    assert "pretrain" not in err
    hashes = [
        json.loads((w / "report" / "results.json").read_text())["hashes"] for w in (workdir, other)
    ]
    assert hashes[0]["teacher"] == hashes[1]["teacher"]
    assert hashes[0]["generator"] == hashes[1]["generator"]
    gray = ["--config=configs/digits.py", given, f"--workdir={tmp_path}/wrong"]
    _, err = finish(command("main", *gray), status=2)
    assert "has 16 tokens of 128 codes, the tokenizer 64 of 17; set config.tokenizer" in err
    both = [given, "--config.teacher.random=True", f"--workdir={tmp_path}/wrong"]
    _, err = finish(command("main", *SMALL, *both), status=2)
    assert "has a bundle and random=True" in err


@pytest.mark.slow
@pytest.mark.long
def test_killed_runs_end_in_the_same_bits(finished, tmp_path, monkeypatch):
    """SIGKILL in each of the two stages, and a start beside each: the last ends as if alone.

    All of it tracked, as one run.
    """
    workdir, _, _ = finished
    other = tmp_path / "killed"
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracked = [*SMALL, "--config.logging.wandb=True", f"--workdir={other}"]
    for sign, stage in ((signal.SIGKILL, "pretrain"), (signal.SIGKILL, "distill")):
        process = command("main", *tracked)
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None:
            if any(line["stage"] == stage for line in metrics.read(other)):
                process.send_signal(signal.SIGSTOP)
                _, err = finish(command("main", *tracked), status=2)
                assert f"{other} is in use by process {process.pid} on " in err
                process.send_signal(sign)
                break
            time.sleep(0.02)
        process.communicate()
    finish(command("main", *tracked))
    hashes = [
        json.loads((w / "report" / "results.json").read_text())["hashes"] for w in (workdir, other)
    ]
    assert hashes[0] == hashes[1]
    assert without_times(metrics.read(workdir)) == without_times(metrics.read(other))
    tracks = wandb_files.runs(other)
    known = json.loads((other / "wandb.json").read_text())
    assert {identity for identity, _, _, _ in tracks} == {known["id"]} and known["sent"] == 24
    assert tracks[-1][1]["distill"]["num_steps"] == 12 and tracks[-1][3] == 0
    rows = [row for _, _, rows, _ in tracks for row in rows]
    steps = [step for step, _ in rows]
    assert steps == sorted(set(steps)) and steps[-1] == 24
    assert all(f"distill/{name}/sha256" in rows[-1][1] for name in ("ema", "generator"))
    lines = {}
    for line in without_times(metrics.read(other)):
        stage, step = line.pop("stage"), line.pop("step")
        named = {f"{stage}/{name}": value for name, value in line.items()}
        lines.setdefault(step + (12 if stage == "distill" else 0), {}).update(named)
    assert all(lines[step].items() <= row.items() for step, row in rows)


def without_times(record):
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in record]


@pytest.mark.slow
@pytest.mark.long
def test_a_run_in_a_bucket_leaves_what_it_leaves_on_a_disk(finished):
    """Stopped by SIGTERM while it distils, started again, and its generator sampled."""
    local, _, _ = finished
    run = [*SMALL, "--workdir=gs://bucket/run"]
    with object_store.running() as (store, environment), mock.patch.dict(os.environ, environment):
        process = command("main", *run, "--profile=1:1")
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None:
            if any("checkpoints/distill/4/" in name for name in object_store.names(store)):
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.02)
        _, err = finish(process, status=143)
        assert "distill: stopped by SIGTERM" in err
        out, err = finish(command("main", *run))
        assert "distill: continues at step" in err and "gs://bucket/run/" in out.splitlines()[-1]
        sampled = ["--generator=gs://bucket/run/export", "--output=gs://bucket/run/grid.png"]
        finish(command("sample", *sampled))
        found = object_store.objects(store)
    found = {name.removeprefix("run/"): data for name, data in found.items()}
    assert found.pop("grid.png").startswith(b"\x89PNG")
    assert found.pop("profile/plugins/profile/distill_step_1/process_0.xplane.pb")
    expected = {
        path.relative_to(local).as_posix(): path.read_bytes()
        for path in local.rglob("*")
        # Checkpoints are laid out for where they are; the digits are made on each machine.
        if path.is_file()
        and path.relative_to(local).parts[0] not in ("checkpoints", "data", "profile")
    }
    assert {name for name in found if not name.startswith("checkpoints/")} == set(expected)
    timed = ("metrics.jsonl", "report/results.json", "report/report.md", "report/report.html")
    for name in set(expected) - set(timed):
        assert found[name] == expected[name], name
    records = [map(json.loads, x["metrics.jsonl"].splitlines()) for x in (found, expected)]
    assert without_times(records[0]) == without_times(records[1])
    results = [json.loads(x["report/results.json"]) for x in (found, expected)]
    assert results[0].pop("wall_seconds") and results[1].pop("wall_seconds")
    assert results[0] == results[1]
