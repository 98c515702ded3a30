"""Folders of images against their prompts: what is paired with what, and what a result says."""

import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from dimo_jax import bundles, evaluate
from dimo_jax.common.errors import InputError
from dimo_jax.conditions import clip_vocabulary
from dimo_jax.evaluation.features import clip_features, clip_images
from dimo_jax.evaluation.metrics import clip_score, prompt_scores
from dimo_jax.models import clip
from tests.helpers.command_line import run_command

CONFIG = {
    "name": "clip", "activation": "gelu", "projection": 6,
    "text": {
        "vocabulary": 514, "context": 24, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 12,
    },
    "image": {
        "image_size": 8, "patch_size": 4, "width": 12, "depth": 1, "heads": 3, "mlp_dim": 20,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    numbers = np.random.default_rng(0)
    shapes = jax.eval_shape(clip.build(CONFIG).init, jax.random.key(0))
    params = jax.tree.map(lambda x: numbers.normal(size=x.shape).astype(np.float32), shapes)
    path = tmp_path_factory.mktemp("bundle") / "clip"
    attachments = {"merges.txt": clip_vocabulary.to_text([])}
    bundles.save(path, kind="clip", model=CONFIG, params=params, attachments=attachments)
    return path


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    """The towers are compiled once for the file."""
    monkeypatch.setattr(clip_features, "load", load)


load = functools.cache(clip_features.load)


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 16, 3), np.uint8))


def test_the_clip_score_of_a_folder(bundle, tmp_path):
    captions = ["a cat", "a dog", "two \u2028 birds"]
    (tmp_path / "captions.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    for i in range(3):
        for k in range(2):
            picture(10 * i + k).save(tmp_path / f"{i:05d}_{k}.png")
    found = prompt_scores.clip_of_folder(tmp_path, bundle, form="plain", batch_size=4)
    features, loaded = clip_features.load(bundle, 4)
    made = [picture(10 * i + k) for i in range(3) for k in range(2)]
    images = features.images(made, clip_images.clip_pixels)
    texts = features.texts([x for x in captions for _ in range(2)])
    cosines = (images * texts).sum(-1)
    assert found.values["clip_score"] == pytest.approx(cosines.mean(), abs=1e-6)
    assert np.ptp(cosines) > 0.05
    assert found.settings == {"clip_form": "plain", "clip_images": 6}
    assert found.hashes == {"clip_weights": loaded.params_hash}


def test_pairs_go_by_the_number_in_the_name(tmp_path):
    names = ("2.png", "10.jpg", "0_step_1.png", "1.webp", *(f"{i}.png" for i in range(3, 10)))
    for name in (*names, "captions.txt", ".3.png.writing", ".4.png"):
        (tmp_path / name).write_bytes(b"")
    captions = [f"caption {i}" for i in range(11)]
    files, texts = prompt_scores.paired(tmp_path, captions)
    assert [x.name for x in files[:4]] == ["0_step_1.png", "1.webp", "2.png", "3.png"]
    assert files[-1].name == "10.jpg" and texts == captions
    with pytest.raises(InputError, match="has no image of caption 11; there are 12 captions"):
        prompt_scores.paired(tmp_path, [*captions, "x"])
    with pytest.raises(InputError, match="has 10.jpg and no such one; there are 10 captions"):
        prompt_scores.paired(tmp_path, captions[:-1])
    (tmp_path / "grid.png").write_bytes(b"")
    with pytest.raises(InputError, match="grid.png does not begin with the number"):
        prompt_scores.paired(tmp_path, captions)
    with pytest.raises(InputError, match="there is no folder"):
        prompt_scores.paired(tmp_path / "none", captions)


def test_captions_that_cannot_be_read(bundle, tmp_path):
    with pytest.raises(InputError, match="there is no .*captions.txt; give a list"):
        prompt_scores.clip_of_folder(tmp_path, bundle)
    (tmp_path / "other.txt").write_text("a\n\nb\n")
    with pytest.raises(InputError, match="other.txt: caption 2 is empty; give one for each"):
        prompt_scores.clip_of_folder(tmp_path, bundle, tmp_path / "other.txt")


def test_the_hps_table_of_a_folder(bundle, tmp_path):
    texts = {"anime": ["a", "b"], "photo": ["c"]}
    lists = tmp_path / "lists"
    lists.mkdir()
    for style in ("anime", "concept-art", "paintings", "photo"):
        (lists / f"{style}.json").write_text(json.dumps(texts.get(style, ["d"])))
        (tmp_path / "x" / style).mkdir(parents=True)
        for i in range(len(texts.get(style, ["d"]))):
            picture(i).save(tmp_path / "x" / style / f"{i:05d}.jpg")
    found = prompt_scores.hps_of_folder(tmp_path / "x", bundle, lists, "v2.0", batch_size=4)
    styles = ["anime", "concept-art", "paintings", "photo"]
    assert list(found.values) == ["hps", *(f"hps_{style}" for style in styles)]
    means = [found.values[f"hps_{style}"] for style in styles]
    assert found.values["hps"] == pytest.approx(np.average(means, weights=[2, 1, 1, 1]))
    features, _ = clip_features.load(bundle, 4)
    jpegs = [clip_images.as_jpeg(picture(i)) for i in range(2)]
    images = features.images(jpegs, clip_images.hps_pixels)
    anime = 100 * clip_score.cosines(images, features.texts(["a", "b"]))
    assert found.values["hps_anime"] == pytest.approx(anime.mean(), abs=1e-4)
    assert found.settings == {"hps_version": "v2.0", "hps_antialias": True}
    with pytest.raises(InputError, match="no HPS 'v2'; there are v2.0, v2.1"):
        prompt_scores.hps_of_folder(tmp_path / "x", bundle, lists, "v2")
    (tmp_path / "x" / "photo" / "00000.jpg").unlink()
    with pytest.raises(InputError, match="photo lacks 1 of 1 images, 00000.jpg first"):
        prompt_scores.hps_of_folder(tmp_path / "x", bundle, lists, "v2.0")


def test_the_command_writes_them(bundle, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        picture(i).save(folder / f"{i:05d}.png")
    (folder / "captions.txt").write_text("a\nb c\nd\n")
    flags = ["images", f"--samples={folder}", f"--clip={bundle}", f"--output={tmp_path / 'eval'}"]
    status, out, err = run_command(evaluate, flags, monkeypatch, capsys)
    assert status == 0, err
    content = json.loads((tmp_path / "eval" / "results.json").read_text())
    expected = prompt_scores.clip_of_folder(folder, bundle).values["clip_score"]
    assert content["rows"][0]["metrics"] == {"clip_score": {"mean": expected, "std": 0.0}}
    assert content["settings"] == {"clip_form": "dimo", "clip_images": 3}
    assert set(content["hashes"]) == {"clip_weights"} and f"{expected:.4f}" in out
    assert "CLIP score" in (tmp_path / "eval" / "report.html").read_text()
