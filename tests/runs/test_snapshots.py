"""The generator of a run at any checkpoint, drawn, exported and evaluated before the run ends."""

import json
import os
import shutil
import urllib.parse
import urllib.request
from unittest import mock

import jax
import numpy as np
import pytest
import safetensors

from dimo_jax import bundles, evaluate, export, sample
from dimo_jax.commands import evaluate as evaluate_command
from dimo_jax.common.errors import InputError
from dimo_jax.runs import snapshots
from dimo_jax.training import metrics, saved, stages
from tests.helpers import object_store
from tests.helpers.command_line import command, finish, run_command
from tests.test_main import SMALL

# On one worker, which makes the fixtures once.
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("snapshots")]

FIGURE = "interim/frechet_features_40"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that kept all kinds of checkpoints."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    flags = [
        "--config.checkpoint.keep=1",
        "--config.checkpoint.keep_every_steps=8",
        "--config.checkpoint.keep_best=1",
        "--config.interim.every_steps=3",
        f"--workdir={workdir}",
    ]
    finish(command("main", *SMALL, *flags))
    return workdir


@pytest.fixture
def unfinished(finished, tmp_path):
    """What is there of it while it is trained: no export, no report; its data are elsewhere."""
    run = tmp_path / "run"
    for name in ("teacher", "tokenizer", "checkpoints"):
        shutil.copytree(finished / name, run / name)
    shutil.copy(finished / "config.json", run)
    return run


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_the_newest_the_regular_and_the_best_are_there(finished):
    lines = [x for x in metrics.read(finished) if FIGURE in x]
    assert [x["step"] for x in lines] == [3, 6, 9, 12]
    best = min(lines, key=lambda x: x[FIGURE])["step"]
    place = stages.checkpoints_of(finished, "distill")
    assert saved.steps(place) == sorted({8, 12, best})
    assert saved.figures(place)[best] == pytest.approx(min(x[FIGURE] for x in lines))
    assert snapshots.open_snapshot(finished, "best").step == best


def test_the_last_checkpoint_is_what_the_run_exported(finished):
    exported = bundles.load(finished / "export")
    found = snapshots.generator_of(finished, "12").generator
    for name in ("params_hash", "model", "sampler", "tokenizer", "provenance"):
        one, other = (json.dumps(getattr(x, name), default=dict) for x in (found, exported))
        assert one == other, name
    assert snapshots.generator_of(finished, None) == finished / "export"


def test_it_is_sampled_and_exported_before_the_end(
    unfinished, finished, tmp_path, monkeypatch, capsys
):
    before = listing(unfinished)
    drawn, flags = {}, ["--labels=1,7", "--num_per_label=2"]

    def draw(name, *source):
        drawn[name] = tmp_path / f"{name}.png"
        arguments = [*source, *flags, f"--output={drawn[name]}"]
        assert run_command(sample, arguments, monkeypatch, capsys)[0] == 0
        return drawn[name].read_bytes()

    def write(name, step, *, status=0):
        output = tmp_path / f"{name}.{step}"
        arguments = [f"--workdir={unfinished}", f"--step={step}", f"--format={name}"]
        arguments += [f"--output={output}"]
        found, _, err = run_command(export, arguments, monkeypatch, capsys)
        assert found == status, err
        return output if status == 0 else err

    eight = draw("eight", f"--workdir={unfinished}", "--step=8")
    newest = draw("newest", f"--workdir={unfinished}")
    assert newest == draw("export", f"--generator={finished}/export") != eight
    bundle = write("bundle", 8)
    assert draw("bundle", f"--generator={bundle}") == eight
    params = bundles.load(bundle).params
    assert write("msgpack", 8).read_bytes() == bundles.params_bytes(params)
    expected = (finished / "export" / "config.json").read_text()
    metadata = safetensors.safe_open(write("safetensors", 12), "numpy").metadata()
    assert metadata["config"] == expected
    exported = jax.export.deserialize(bytearray(write("stablehlo", 8).read_bytes()))
    assert exported.call(np.array([0, 0], "uint32"), np.zeros(2, np.int32)).shape[0] == 2
    assert "there is no checkpoint of step 5" in write("msgpack", 5, status=2)
    assert "--step=x is neither a number of steps nor newest or best" in write(
        "msgpack", "x", status=2
    )
    assert listing(unfinished) == before


def test_what_step_does_not_go_with(finished, tmp_path, monkeypatch, capsys):
    output = f"--output={tmp_path / 'x.png'}"
    for flags, complaint in (
        ([f"--generator={finished}/export", "--step=8"], "--step is a checkpoint of --workdir"),
        ([f"--generator={finished}/export", f"--workdir={finished}"], "exclude each other"),
        ([], "--generator or --workdir is missing"),
    ):
        status, _, err = run_command(sample, [*flags, output], monkeypatch, capsys)
        assert status == 2 and complaint in err


def test_it_is_evaluated_before_the_end_each_step_on_its_own(unfinished, tmp_path, monkeypatch):
    asked = []

    def sets_of(*arguments):
        asked.extend(original(*arguments))
        raise InputError("enough")

    original = evaluate_command.run_samples.sets_of
    monkeypatch.setattr(evaluate_command.run_samples, "sets_of", sets_of)
    for step in (8, 12):
        for name in evaluate.FLAGS:
            evaluate.FLAGS[name].unparse()
        evaluate.FLAGS(
            ["evaluate", f"--workdir={unfinished}", f"--step={step}", "--num=4",
             f"--output={tmp_path / 'eval'}", "--features=none", "--steps=1,2"]
        )  # fmt: skip
        with pytest.raises(InputError, match="enough"):
            evaluate_command.run(evaluate.FLAGS, "run", [])
    names = [one.name for one in asked]
    assert names == ["generator_1_checkpoint_8", "teacher_2", *names[2:]]
    assert names[2] == "generator_1_checkpoint_12"
    for one, step in ((asked[0], 8), (asked[2], 12)):
        assert one.bundle == tmp_path / "eval" / f"checkpoint_{step}"
        assert bundles.load(one.bundle).provenance["steps"] == step
        assert bundles.load_tokenizer(one.tokenizer).kind == "tokenizer"


def test_a_longer_run_has_newer_checkpoints_than_its_export(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    place = stages.checkpoints_of(run, "distill")
    shutil.copytree(place / "12", place / "16")
    assert snapshots.generator_of(run, None).step == 16


def test_a_run_in_an_object_store(finished, tmp_path):
    with object_store.running() as (store, environment), mock.patch.dict(os.environ, environment):
        for path in finished.rglob("*"):
            name = f"run/{path.relative_to(finished).as_posix()}"
            # Neither what is taken in place of a checkpoint nor the data, which are not read.
            if path.is_file() and not name.startswith(("run/export/", "run/data/")):
                store_url = environment["STORAGE_EMULATOR_HOST"]
                query = urllib.parse.urlencode({"uploadType": "media", "name": name})
                address = f"{store_url}/upload/storage/v1/b/{object_store.BUCKET}/o?{query}"
                urllib.request.urlopen(address, path.read_bytes()).close()
        before = object_store.objects(store)
        output = tmp_path / "8.msgpack"
        flags = [f"--workdir=gs://{object_store.BUCKET}/run", "--step=8", "--format=msgpack"]
        finish(command("export", *flags, f"--output={output}"))
        assert object_store.objects(store) == before
    expected = snapshots.open_snapshot(finished, 8).generator.params
    assert output.read_bytes() == bundles.params_bytes(expected)
