"""The animation of benchmarks/steps_gif.py, from tiny networks: its first and its last frame."""

import runpy
import sys

import numpy as np
from PIL import Image, ImageSequence

import dimo_jax
from tests.helpers import ROOT
from tests.helpers.command_line import save_tiny

SCRIPT = ROOT / "benchmarks" / "steps_gif.py"
MASKED = (168, 190, 224)


def panel(frame, right):
    """The ten digits of a panel, [10, 8, 8, 3]: pixels of 5 x 5, and gaps, all twice as large."""
    width = (frame.shape[1] - 32) // 2
    grid = frame[32::2, right * (width + 32) : right * (width + 32) + width : 2]
    tiles = [grid[2 + 42 * row :][:40, 2 + 42 * i :][:, :40] for row in range(2) for i in range(5)]
    return np.stack([tile[2::5, 2::5] for tile in tiles])


def test_it_begins_masked_and_ends_with_the_images_of_both(tmp_path, monkeypatch):
    save_tiny(tmp_path / "export")
    save_tiny(tmp_path / "teacher", kind="teacher")
    output = tmp_path / "steps.gif"
    arguments = [f"--workdir={tmp_path}", f"--output={output}", "--steps=4"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    with Image.open(output) as picture:
        frames = [np.asarray(x.convert("RGB")) for x in ImageSequence.Iterator(picture)]
    assert len(frames) == 5
    masked = [(panel(x, right=0) == MASKED).all(-1).mean() for x in frames]
    assert masked[0] == 1 and masked[-1] == 0 and masked == sorted(masked, reverse=True)
    start = (panel(frames[0], right=1) == MASKED).all(-1).mean(axis=(1, 2))
    np.testing.assert_allclose(start, round(0.6 * 64) / 64)
    labels = range(10)
    teacher = dimo_jax.load(tmp_path / "teacher")(labels, steps=4)
    generator = dimo_jax.load(tmp_path / "export")(labels)
    for right, expected in ((0, teacher), (1, generator)):
        found = panel(frames[-1], right).astype(int)
        assert np.abs(found - expected).max() < 8  # the palette's; its grays are 16 apart
