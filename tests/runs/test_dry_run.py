"""--dry_run: everything checked, what would be done, nothing written."""

import re
import shutil
from collections import namedtuple

import jax.numpy as jnp
import pytest

from dimo_jax import config as configs
from dimo_jax.common.errors import InputError
from dimo_jax.config import defaults
from dimo_jax.runs import dry_run
from dimo_jax.training import stages
from dimo_jax.training.checkpoints import Checkpoints
from tests.helpers.command_line import command, finish
from tests.helpers.opened_runs import CLASSES, DIGITS, PATCH, TEXT, TOY, opened


def parameters(width, mlp_dim, tokens, codes, classes):
    """Of a MaskGit of one block, counted by hand."""
    table, positions = (codes + 1 + classes + 1) * width, (tokens + 1) * width
    bias = (tokens + 1) * (codes + 1 + classes + 1)
    around = 3 * (width * width + width) + 4 * 2 * width  # first_in, first_out, last; four norms
    attention = 4 * (width * width + width)
    feed_forward = width * mlp_dim + mlp_dim + mlp_dim * width + width
    return table + positions + bias + around + attention + feed_forward + 2 * 2 * width


def test_the_command_says_what_would_be_done_and_writes_nothing(tmp_path):
    small = [f"--config.model.{x}" for x in ("width=8", "depth=1", "heads=2", "mlp_dim=16")]
    small += ["--config.pretrain.batch_size=8", "--config.distill.parts=2"]
    flags = ["--config=configs/digits.py", *small, "--dry_run", f"--workdir={tmp_path / 'run'}"]
    out, err = finish(command("main", *flags))
    assert list(tmp_path.iterdir()) == []
    number = parameters(8, 16, 64, 17, 10)
    assert f"{number:,} parameters" in out
    assert "64 tokens of 17 codes" in out
    assert "pretrain: begins, 2,000 steps of 8 examples;" in out
    assert "distill: begins, 1,800 steps of 32 examples in 2 parts;" in out
    # Parameters, two moments and the average, all float32; a few scalars besides.
    size = float(re.search(r"pretrain: .* a checkpoint of ([\d.]+) kB", out)[1])
    assert number * 4 * 4 / 1000 - 1 <= size <= number * 4 * 4 / 1000 + 1
    assert "every 500 steps, 2 kept" in out and "6 samplers of the teacher at 4, 16 steps" in out


@pytest.mark.slow
@pytest.mark.parametrize("base", [DIGITS, PATCH, TOY, CLASSES, TEXT])
def test_every_kind_of_run_has_one(base, tmp_path, capsys):
    run = opened(base, {}, tmp_path / "run")
    dry_run.show(run)
    out = capsys.readouterr().out
    assert "distill: begins" in out and ("pretrain: begins" in out) == ("pretrain" in run.programs)
    assert f"{run.network.num_tokens} tokens of {run.network.codebook_size} " in out
    assert list(tmp_path.iterdir()) == []
    assert len(configs.flat(defaults.FIELDS)) <= int(re.search(r"config: (\d+) fields", out)[1])


def test_of_a_run_that_was_begun_it_says_where_it_goes_on(tmp_path, capsys):
    directory = stages.checkpoints_of(tmp_path, "distill")
    checkpoints = Checkpoints(directory, 2)
    checkpoints.save(3, {"step": jnp.int32(3)}, {}, {})
    checkpoints.close()
    before = {x: x.stat().st_mtime_ns for x in tmp_path.rglob("*")}
    dry_run.show(opened(TOY, {}, tmp_path))
    out = capsys.readouterr().out
    assert "pretrain: begins, 600 steps" in out and "distill: goes on at step 3, 1,500 steps" in out
    assert {x: x.stat().st_mtime_ns for x in tmp_path.rglob("*")} == before


def test_a_disk_with_too_little_room_is_named(tmp_path, monkeypatch, capsys):
    run = opened(TOY, {}, tmp_path / "run")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    with pytest.raises(InputError, match="run has 1 kB free, and the run takes about .* kB"):
        dry_run.show(run)
    assert "distill: begins" in capsys.readouterr().out


def test_sizes_are_of_1000():
    assert [dry_run.size(x) for x in (0, 999, 1000, 1_234_567, 4 * 10**12)] == [
        *("0 B", "999 B", "1 kB", "1.23 MB", "4 TB")
    ]
