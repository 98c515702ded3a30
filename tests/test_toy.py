"""The method on known joints, shortened; the full runs and their figures are in docs/method.md."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]


def total_variations(tmp_path, joint, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dimo_jax.main", f"--config=configs/toy.py:{joint}"),
            *(f"--workdir={tmp_path}", "--config.logging.tensorboard=False"),
            *("--config.pretrain.num_steps=150", "--config.pretrain.batch_size=64"),
            *("--config.evaluation.num_samples=50_000", *arguments),
        ],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "report" / "results.json").read_text())["rows"]
    assert all(list(row) == ["model", "steps", "metrics", "sampler"] for row in rows)
    return {row["model"]: row["metrics"]["total_variation"]["mean"] for row in rows}


def test_two_equal_tokens_are_learnt_in_one_step(tmp_path):
    steps = ("--config.distill.num_steps=400", "--config.distill.batch_size=128")
    found = total_variations(tmp_path, "pair", *steps)
    assert abs(found["independent"] - 0.90) < 0.01
    assert found["true_joint"] < 0.03
    assert found["generator"] < 0.45
    assert (tmp_path / "report" / "joints.png").is_file()


def test_parity_stays_at_independent_sampling(tmp_path):
    # Any three tokens are uniform, so every masked marginal but the last tells nothing: the mean
    # gradient is zero, and one step cannot leave the product of the marginals. The same steps bring
    # the pair from 0.90 to 0.60.
    steps = ("--config.distill.num_steps=150", "--config.distill.batch_size=64")
    steps += ("--config.fast_compile=True",)  # compiling is most of the time
    found = total_variations(tmp_path, "parity", *steps)
    assert abs(found["generator"] - found["independent"]) < 0.05
