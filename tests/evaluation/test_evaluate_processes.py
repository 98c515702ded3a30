"""Two processes evaluate one set of samples, and find what one process finds, to the last bit."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dimo_jax import bundles, evaluate
from dimo_jax.evaluation import evaluate_images
from dimo_jax.evaluation.features import feature_store
from dimo_jax.evaluation.metrics import neighbours
from tests.helpers import ROOT, evaluate_processes, picture_files
from tests.helpers.command_line import run_command

pytestmark = pytest.mark.slow

PIXELS = picture_files.random_pixels(45)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(folder, what the two processes said of good samples, and of some with a damaged picture)."""
    root = tmp_path_factory.mktemp("processes")
    picture_files.write_folder(root / "samples", PIXELS[:23])
    picture_files.write_folder(root / "damaged", PIXELS[:23])
    picture_files.damage(root / "damaged" / "6.png")
    np.savez(root / "real.npz", arr_0=PIXELS[23:])
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    lives = [
        [*flags(root), f"--samples={root / name}", f"--output={root / name}.results"]
        for name in ("samples", "damaged")
    ]
    result = subprocess.run(
        [sys.executable, "-m", "tests.helpers.evaluate_processes", root, json.dumps(lives)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    return root, [json.loads(line) for line in result.stdout.splitlines()]


def flags(root):
    metrics = ["--protocol=valeo", "--metrics=fid,sfid,is,prdc"]
    return [*metrics, "--features=plain", f"--reference={root / 'real.npz'}"]


def test_two_processes_find_what_one_does(told, monkeypatch, capsys):
    root, (lead, other), _ = (told[0], *told[1])
    assert (lead["status"], other["status"]) == (0, 0), told
    for module, name in (
        (feature_store, "RANGE_SIZE"),
        (neighbours, "ROWS_PER_DEVICE"),
        (neighbours, "COLUMNS"),
        (bundles, "load"),
        (evaluate_images, "open_network"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # so that all is put back
    evaluate_processes.replace_network()
    arguments = [*flags(root), f"--samples={root / 'samples'}", f"--output={root / 'one'}"]
    status, _, err = run_command(evaluate, arguments, monkeypatch, capsys)
    assert status == 0, err
    folders = (root / "one", root / "samples.results")
    one, two = (json.loads((folder / "results.json").read_text()) for folder in folders)
    for content in (one, two):
        content["rows"][0].pop("images_per_second")
    assert one["rows"] == two["rows"] and one["hashes"] == two["hashes"]
    assert len(set(one["rows"][0]["parts"]["prdc"]["chunks"]["recall"])) > 1
    # One speaks; each has computed its own half.
    assert "Inception Score: " in lead["output"] and "Inception" not in other["output"]
    assert "features 12/12" in lead["output"]


def test_both_end_where_one_finds_a_damaged_picture(told):
    root, (_, (lead, other)) = told
    assert (lead["status"], other["status"]) == (2, 2)
    assert "error: another process cannot use some of its images" in lead["output"]
    assert "6.png" in other["output"] and "7 other images are kept" in other["output"]
    assert "Traceback" not in lead["output"] + other["output"]
    assert not (root / "damaged.results" / "results.json").exists()
    # All ranges but one of both processes.
    assert len(list((root / "damaged.results").rglob("*.npz"))) == 5
