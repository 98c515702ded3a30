"""configs/emoji.py, shrunk: from a package's pictures to the report."""

import json

import pytest

from dimo_jax import bundles
from dimo_jax.data.emoji import Emoji
from tests.helpers.command_line import command, finish

pytestmark = [pytest.mark.slow, pytest.mark.long]

SMALL = [
    "--config=configs/emoji.py",
    "--config.fast_compile=True",
    "--config.tokenizer.codebook_size=32",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.heads=2",
    "--config.model.mlp_dim=16",
    "--config.pretrain.num_steps=4",
    "--config.pretrain.batch_size=8",
    "--config.pretrain.optimizer.warmup_steps=2",
    "--config.distill.num_steps=4",
    "--config.distill.batch_size=8",
    "--config.distill.generator.optimizer.warmup_steps=2",
    "--config.distill.auxiliary.optimizer.warmup_steps=2",
    "--config.logging.tensorboard=False",
    "--config.interim.every_steps=4",
    "--config.interim.num_samples=40",
    "--config.classifier.num_steps=4",
    "--config.evaluation.num_samples=100",
    "--config.evaluation.seeds=(0,)",
    "--config.evaluation.teacher_steps=(1,)",
    "--config.evaluation.sweep_steps=(2,)",
    "--config.evaluation.sweep_num_samples=20",
    "--config.evaluation.guidances=(1.0,)",
    "--config.evaluation.choice_temperatures=()",
    "--config.evaluation.num_pictures=18",
]


def test_a_run_ends_in_a_report_with_the_groups_and_what_is_copied(tmp_path):
    workdir = tmp_path / "emoji"
    finish(command("main", *SMALL, f"--workdir={workdir}"))
    results = json.loads((workdir / "report" / "results.json").read_text())
    assert [row["model"] for row in results["rows"]] == ["teacher", "generator", "test_split"]
    assert "copies" in results["rows"][1]["metrics"]
    assert results["per_class"]["names"] == list(Emoji.CLASS_NAMES)
    page = (workdir / "report" / "report.html").read_text()
    assert "Travel &amp; Places" in page
    report = (workdir / "report" / "report.md").read_text()
    assert "of each class its share" in report and "neighbours.png" in report
    tokenizer = bundles.load_tokenizer(workdir / "export" / "tokenizer")
    assert tokenizer.model["codebook_size"] == 32 and tokenizer.model["channels"] == 3
