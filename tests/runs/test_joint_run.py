"""A run on a known joint: what its report says of a mixture, at each number of its steps."""

import json

import pytest

from tests.helpers.command_line import command, finish

pytestmark = pytest.mark.slow


def test_a_mixture_is_measured_at_each_number_of_steps_beside_its_teacher(tmp_path):
    done = command(
        "main",
        *("--config=configs/toy.py:pair", f"--workdir={tmp_path}"),
        *("--config.distill.method=mixture", "--config.distill.num_steps=2"),
        *("--config.pretrain.num_steps=2", "--config.logging.tensorboard=False"),
        *("--config.model.width=8", "--config.model.depth=1", "--config.model.mlp_dim=8"),
        *("--config.pretrain.batch_size=8", "--config.distill.batch_size=8"),
        "--config.pretrain.optimizer.warmup_steps=0",
        "--config.distill.generator.optimizer.warmup_steps=0",
        "--config.distill.auxiliary.optimizer.warmup_steps=0",
    )
    finish(done)
    rows = json.loads((tmp_path / "report" / "results.json").read_text())["rows"]
    found = {
        (row["model"], row["steps"]): row["metrics"]["total_variation"]["mean"] for row in rows
    }
    assert list(found) == [
        *(("generator", 1), ("generator", 2), ("teacher", 2)),
        *(("independent", 1), ("true_joint", 0)),
    ]
    # Two tokens in two steps: the posterior is exact, but for the error of as many samples.
    assert found["teacher", 2] < 2 * found["true_joint", 0]
    assert found["generator", 1] > 0.5  # untrained
