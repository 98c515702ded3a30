"""configs/pictures.py, shrunk: from a folder of tokens to the report."""

import json

import pytest

from dimo_jax import bundles
from dimo_jax.training import metrics
from tests.helpers import digit_tokens
from tests.helpers.command_line import command, finish

pytestmark = [pytest.mark.slow, pytest.mark.long]

SMALL = [
    "--config=configs/pictures.py:tiny",
    "--config.fast_compile=True",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.heads=2",
    "--config.model.mlp_dim=16",
    "--config.pretrain.num_steps=8",
    "--config.pretrain.batch_size=64",
    "--config.pretrain.optimizer.warmup_steps=2",
    "--config.distill.num_steps=4",
    "--config.distill.batch_size=8",
    "--config.distill.generator.optimizer.warmup_steps=2",
    "--config.distill.auxiliary.optimizer.warmup_steps=2",
    "--config.checkpoint.save_every_steps=2",
    "--config.logging.log_every_steps=1",
    "--config.logging.images_every_steps=4",
    "--config.logging.picture_steps=2",
    "--config.logging.tensorboard=False",
    "--config.interim.every_steps=4",
    "--config.interim.num_samples=20",
    "--config.interim.teacher=True",
    "--config.classifier.channels=(8,)",
    "--config.classifier.num_steps=4",
    "--config.evaluation.num_samples=20",
    "--config.evaluation.seeds=(0,)",
    "--config.evaluation.teacher_steps=(1,)",
    "--config.evaluation.sweep_steps=(2,)",
    "--config.evaluation.sweep_num_samples=11",
    "--config.evaluation.guidances=(1.0,)",
    "--config.evaluation.choice_temperatures=()",
    "--config.evaluation.num_pictures=11",
]


def test_a_run_ends_in_a_report_against_the_decoded_set(tmp_path):
    # Of the last class there is no picture.
    names = [f"the {x}" for x in (*"0123456789", "none")]
    tokens = digit_tokens.write(tmp_path / "tokens", views=2, names=names)
    workdir, codec = tmp_path / "run", tmp_path / "tokenizer"
    bundles.save(codec, kind="tokenizer", model=digit_tokens.GRAY.config, params={})
    arguments = [*SMALL, f"--config.data.path={tokens}", f"--workdir={workdir}"]
    arguments[1:1] = [f"--config.tokenizer.bundle={codec}", "--config.data.num_test=15"]
    finish(command("main", *arguments))
    config = json.loads((workdir / "config.json").read_text())
    assert config["data"]["num_classes"] == 11 and config["data"]["num_test"] == 15
    results = json.loads((workdir / "report" / "results.json").read_text())
    assert [row["model"] for row in results["rows"]] == ["teacher", "generator", "test_split"]
    assert results["per_class"]["names"] == names
    assert "200 pictures as the tokenizer decodes them, 15 of them" in results["real_images"]
    page = (workdir / "report" / "report.html").read_text()
    assert "as the tokenizer decodes them" in page and "the 7" in page
    lines = [x for x in metrics.read(workdir) if x["stage"] == "pretrain"]
    assert "train/teacher_loss_at_0.5_to_0.75" in lines[0]
    (measured,) = [x for x in lines if x["step"] == 4 and "interim/frechet_features_20" in x]
    assert measured["interim/frechet_features_20"] > 0
    assert (workdir / "images" / "pretrain" / "samples_0000008.png").is_file()
    # The teacher is one to distil from, whatever its data were.
    again = [*arguments[:-1], f"--workdir={tmp_path / 'again'}", "--dry_run"]
    said, _ = finish(command("main", *again, f"--config.teacher.bundle={workdir / 'teacher'}"))
    assert "200 pictures as the tokenizer decodes them" in said
