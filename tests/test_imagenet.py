"""configs/imagenet.py: its smoke run from end to end, and what its variants change."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import imagenet
from dimo_jax import config as configs
from dimo_jax.common.errors import InputError
from dimo_jax.config import validation
from dimo_jax.training import metrics
from tests.helpers.command_line import command, finish, run_printed

# On one worker, which makes the fixtures once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("imagenet")]

SMOKE = ["--config=configs/imagenet.py:smoke", "--config.logging.tensorboard=False"]
BUNDLES = {"teacher": "bundles/maskgit256", "tokenizer": "bundles/vqgan_f16_1024"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "image net"
    out, err = finish(command("main", *SMOKE, f"--workdir={workdir}"))
    return workdir, out, err


def test_the_smoke_run_leaves_a_generator_and_its_record(finished):
    workdir, out, err = finished
    assert "pretrain" not in err and "images of it: " in out
    last = [line for line in metrics.read(workdir) if line["stage"] == "distill"][-1]
    assert last["step"] == 6
    for name in (
        "divergence", "aux_loss", "generator_entropy", "generator_choices", "generator_one_hot",
        "generator_grad_norm", "aux_grad_norm", "generator_learning_rate", "aux_learning_rate",
    ):  # fmt: skip
        assert np.isfinite(last[f"train/{name}"]), name
    np.testing.assert_allclose(last["train/generator_learning_rate"], 1e-5, rtol=1e-6)
    names = sorted(x.name for x in (workdir / "images" / "distill").iterdir())
    assert sum("teacher" in name for name in names) == 1
    assert sum("ema" in name for name in names) == sum("generator" in name for name in names) == 1


@pytest.mark.long
def test_the_command_at_the_end_runs_as_it_stands(finished, tmp_path, monkeypatch):
    workdir, out, err = finished
    assert f"work directory '{workdir}';" in err and "mesh data=1 x fsdp=1; distill " in err
    run_printed(out, tmp_path, monkeypatch)


@pytest.mark.long
def test_the_generator_of_a_run_is_sampled(finished, tmp_path):
    workdir, _, _ = finished
    grid = tmp_path / "grid.png"
    labels = "1,7,282"
    flags = [f"--generator={workdir}/export", f"--labels={labels}", "--num_per_label=2"]
    finish(command("sample", *flags, f"--output={grid}"))
    assert np.asarray(Image.open(grid)).shape[2] == 3
    npz = tmp_path / "samples.npz"
    finish(command("sample", flags[0], "--num=10", f"--output={npz}"))
    with np.load(npz) as data:
        assert (data["arr_0"].dtype, data["arr_0"].shape) == (np.uint8, (10, 16, 16, 3))
        assert data["labels"].tolist() == list(range(10))


def test_frozen_leaves_are_the_teachers(finished):
    workdir, _, _ = finished
    from dimo_jax import bundles

    teacher, generator = (bundles.load(workdir / x).params for x in ("teacher", "export"))
    for name in ("token_embedding", "position_embedding", "output_bias"):
        np.testing.assert_array_equal(teacher[name], generator[name])
    kernel = "first_in"
    assert (teacher[kernel]["kernel"] != generator[kernel]["kernel"]).any()


@pytest.mark.parametrize("missing", ["teacher", "tokenizer"])
def test_without_a_bundle_it_stops_and_says_which_two_commands_to_run(missing):
    config = imagenet.get_config().to_dict()
    for name, path in BUNDLES.items():
        config[name]["bundle"] = "" if name == missing else path
    with pytest.raises(InputError, match=f"config.{missing}.bundle empty") as error:
        validation.validate(config)
    for source in ("maskgit", "vqgan"):
        assert f"python -m dimo_jax.convert --source={source}" in str(error.value)


def test_the_command_stops_before_anything_is_written(tmp_path):
    workdir = tmp_path / "run"
    _, err = finish(
        command("main", "--config=configs/imagenet.py", f"--workdir={workdir}"), status=2
    )
    assert err.startswith("error: config.teacher.bundle and config.tokenizer.bundle empty")
    assert err.count("\n") == 1 and not workdir.exists()


def test_the_variants_change_what_they_say():
    plain = imagenet.get_config().to_dict()["distill"]
    changes = {
        variant: {
            name: value
            for name, value in configs.flat(
                imagenet.get_config(variant).to_dict()["distill"]
            ).items()
            if configs.flat(plain)[name] != value
        }
        for variant in imagenet.VARIANTS
    }
    assert changes["default"] == changes["512"] == {}
    assert changes["released"] == dict.fromkeys(
        ("teacher.dropout", "auxiliary.dropout", "generator.dropout"), True
    )
    assert changes["paper"] == {
        "divergence.name": "jeffrey",
        "divergence.parameter": -0.2,
        "reduction": "mean_masked",
        "weighting": "paper",
        "auxiliary.sample": "reuse",
        "auxiliary.label_smoothing": 0.0,
    }
    # Every choice of the method is the default's: only sizes, steps and warm-ups shrink.
    assert {name.rpartition(".")[2] for name in changes["smoke"]} == {
        "num_steps", "batch_size", "warmup_steps",
    }  # fmt: skip
    with pytest.raises(ValueError, match="variants default, released, paper, 512, di4c, smoke"):
        imagenet.get_config("smoek")


def test_the_config_is_written_beside_the_run(finished):
    workdir, _, _ = finished
    written = json.loads((workdir / "config.json").read_text())
    assert written["teacher"]["random"] and written["compute_dtype"] == "bfloat16"
