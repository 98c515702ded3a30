"""GenEval of a folder: found, scored, killed and resumed, shared by processes, and as a command."""

import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from dimo_jax import bundles, evaluate, models
from dimo_jax.commands import evaluate_scores
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress
from dimo_jax.evaluation import geneval_images
from dimo_jax.evaluation.features import clip_features
from dimo_jax.evaluation.features.detector import Found, Objects
from dimo_jax.evaluation.geneval_images import GenevalStore
from dimo_jax.evaluation.metrics import geneval, geneval_rules
from tests.helpers.command_line import run_command

SHADES = {"cat": (250, 0, 0), "dog": (0, 0, 250)}
# Prompts, and what is drawn in each of their pictures: (class, left, top).
PROMPTS = [
    ({"tag": "single_object", "include": [{"class": "cat", "count": 1}]},
     [[("cat", 4, 4)], []]),
    ({"tag": "two_object", "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}]},
     [[("cat", 4, 4), ("dog", 30, 30)], [("cat", 4, 4)]]),
    ({"tag": "counting", "include": [{"class": "dog", "count": 2}],
      "exclude": [{"class": "dog", "count": 3}]},
     [[("dog", 4, 4), ("dog", 30, 4)], [("dog", 4, 4), ("dog", 30, 4), ("dog", 30, 30)]]),
    ({"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}]},
     [[("cat", 9, 9)], [("dog", 9, 9)]]),
    ({"tag": "position", "include": [{"class": "dog", "count": 1},
      {"class": "cat", "count": 1, "position": ["left of", 0]}]},
     [[("dog", 40, 4), ("cat", 4, 4)], [("dog", 4, 40), ("cat", 4, 4)]]),
    ({"tag": "color_attr", "include": [{"class": "dog", "count": 1, "color": "blue"}]},
     [[("dog", 20, 20)], [("dog", 1, 1)]]),
]  # fmt: skip
CORRECT = [True, False, True, False, True, False, True, False, True, False, True, True]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for i, (metadata, pictures) in enumerate(PROMPTS):
        samples = root / f"{i:05d}" / "samples"
        samples.mkdir(parents=True)
        line = json.dumps({**metadata, "prompt": f"prompt {i}"})
        (root / f"{i:05d}" / "metadata.jsonl").write_text(line + "\n")
        (root / f"{i:05d}" / "grid.png").write_bytes(b"no picture that is read")
        for k, things in enumerate(pictures):
            pixels = np.full((60, 60, 3), 200, np.uint8)
            for name, left, top in things:
                pixels[top : top + 12, left : left + 12] = SHADES[name]
            Image.fromarray(pixels).save(samples / f"{k:05d}.png")
    (root / "notes").mkdir()
    return root


class Blobs:
    """Finds the squares by their colours, and can fail like a process that is killed."""

    def __init__(self, most=100):
        self.seen, self._most = 0, most

    def __call__(self, images, thresholds):
        if self.seen >= self._most:
            raise KeyboardInterrupt
        self.seen += len(images)
        return [Objects(list(self._found(image)), 0.9) for image in images]

    def _found(self, image):
        for name, shade in SHADES.items():
            mask = (image == shade).all(-1)
            corners = mask & ~np.roll(mask, 1, 0) & ~np.roll(mask, 1, 1)
            for top, left in np.argwhere(corners).tolist():
                one = np.zeros_like(mask)
                one[top : top + 12, left : left + 12] = True
                label = geneval_rules.CLASSES.index(name)
                yield Found(label, 0.95, (left, top, left + 12, top + 12), one)


def classify(image, name, objects):
    left, top = objects[0].box[:2]
    return ["red" if image.getpixel((left, top))[0] else "blue" for _ in objects]


def fill(folder, output, detect=None, settings=None):
    prompts = geneval_images.find(folder)
    store = GenevalStore(prompts, output, detect or Blobs(), classify, settings or {"weights": "a"})
    with Progress("geneval", silent=True) as progress:
        return store.fill(progress)


def test_results_are_in_the_originals_form(folder, tmp_path):
    path = fill(folder, tmp_path / "eval")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [x["correct"] for x in lines] == CORRECT
    names = ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert all(list(x) == names for x in lines)
    assert lines[3]["filename"] == "00001/samples/00001.png" and lines[3]["prompt"] == "prompt 1"
    assert lines[3]["reason"] == "dog: 0 found, 1 expected"
    assert json.loads(lines[3]["metadata"]) == {**PROMPTS[1][0], "prompt": "prompt 1"}
    assert json.loads(lines[3]["details"]) == {"cat": [[4, 4, 16, 16, 0.95]]}
    found = geneval.summarise(path)
    assert found.overall == pytest.approx((5 * 0.5 + 1) / 6) and found.num_images == 12


def test_a_killed_command_goes_on_to_the_same_bytes(folder, tmp_path):
    expected = fill(folder, tmp_path / "one").read_bytes()
    output = tmp_path / "eval"
    with pytest.raises(KeyboardInterrupt):
        fill(folder, output, Blobs(most=5))
    rest = Blobs()
    assert fill(folder, output, rest).read_bytes() == expected
    assert 0 < rest.seen < 12
    again = Blobs()
    assert fill(folder, output, again).read_bytes() == expected and again.seen == 0
    with pytest.raises(InputError, match="begun with other settings: weights"):
        fill(folder, output, settings={"weights": "b"})


def test_a_new_picture_is_scored_anew(folder, tmp_path):
    fill(folder, tmp_path)
    Image.new("RGB", (30, 30)).save(folder / "00000" / "samples" / "00000.png")
    again = Blobs()
    lines = fill(folder, tmp_path, again).read_text().splitlines()
    assert again.seen == 2 and not json.loads(lines[0])["correct"]
    parts = list((tmp_path / geneval_images.PARTS_FOLDER).glob("*.jsonl"))
    assert len(parts) == len(PROMPTS)


def test_processes_share_the_prompts(folder, tmp_path, monkeypatch):
    expected = fill(folder, tmp_path / "one").read_bytes()
    seen = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index in (1, 0):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        detect = Blobs()
        if index:
            with pytest.raises(InputError, match="not all processes see all of"):
                fill(folder, tmp_path / "two", detect)
        else:
            assert fill(folder, tmp_path / "two", detect).read_bytes() == expected
        seen.append(detect.seen)
    assert seen == [6, 6]


def test_a_damaged_picture_costs_its_prompt_alone(folder, tmp_path):
    bad = folder / "00002" / "samples" / "00001.png"
    bad.write_bytes(bad.read_bytes()[:60])
    detect = Blobs()
    with pytest.raises(InputError, match="00001.png .*The results of the other images are kept"):
        fill(folder, tmp_path / "eval", detect)
    assert detect.seen == 10 and not (tmp_path / "eval" / "results.jsonl").exists()


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda x: (x / "00001" / "metadata.jsonl").unlink(), "there is no file .*metadata.jsonl"),
        (lambda x: (x / "00001" / "metadata.jsonl").write_text("{"), "is not JSON"),
        (lambda x: (x / "00001" / "metadata.jsonl").write_text("{}"), "has the tag"),
        (lambda x: [y.unlink() for y in (x / "00001" / "samples").iterdir()], "has no images"),
        (lambda x: [y.rename(y.with_name(f"p{y.name}")) for y in x.iterdir()], "no folder of Gen"),
    ],
)
def test_folders_of_another_kind_are_refused(folder, change, complaint):
    change(folder)
    with pytest.raises(InputError, match=complaint):
        geneval_images.find(folder)


SMALL = {
    "name": "mask2former", "num_classes": 80, "num_queries": 2, "width": 32, "heads": 1,
    "swin": {"width": 4, "depth": [1, 1, 1, 1], "heads": [1, 1, 1, 1], "window": 2},
    "pixel_decoder": {"depth": 1, "mlp_dim": 4}, "decoder": {"depth": 1, "mlp_dim": 4},
}  # fmt: skip


# Checking a bundle's parameters takes a second each time.
load_once = functools.lru_cache(bundles.load)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    like = jax.eval_shape(models.build(SMALL).init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    place = tmp_path_factory.mktemp("geneval") / "mask2former"
    return bundles.save(place, kind="detector", model=SMALL, params=params)


@pytest.fixture
def run(folder, detector, tmp_path, monkeypatch, capsys):
    """Runs the command with stand-ins for both networks; the detector's bundle is real."""
    monkeypatch.setattr(evaluate_scores, "ObjectDetector", lambda *arguments: Blobs())
    clip = {"activation": "gelu", "image": dict.fromkeys(("image_size", "width"), 1)}
    clip["image"] |= {"patch_size": 14, "depth": 24}
    bundle = bundles.Bundle("clip", clip, {}, None, None, {}, tmp_path, "clip's")
    monkeypatch.setattr(clip_features, "load", lambda path, batch_size: (None, bundle))
    monkeypatch.setattr(
        evaluate_scores.geneval_colors, "ColorClassifier", lambda features: classify
    )

    monkeypatch.setattr(bundles, "load", load_once)

    def run(*flags, words=("geneval", str(folder)), detector=detector):
        given = [f"--output={tmp_path / 'eval'}", *flags]
        given += [f"--detector={detector}"] if detector else []
        return run_command(evaluate, [*words, *given], monkeypatch, capsys)

    run.output = tmp_path / "eval"
    return run


def test_one_command_scores_a_folder(run, folder):
    status, out, err = run("--clip=bundles/clip")
    assert status == 0, err
    assert out.splitlines()[0].split()[0] == "overall" and "PARTIAL" in out
    assert "warning: the colours are not GenEval's" in err and "activation gelu" in err
    content = json.loads((run.output / "results.json").read_text())
    assert content["protocol"]["name"] == "GenEval"
    metrics = content["rows"][0]["metrics"]
    assert metrics["geneval_colors"]["mean"] == 0.5 and metrics["geneval_color_attr"]["mean"] == 1
    assert set(content["hashes"]) == {"detector_weights", "clip_weights"}
    assert (run.output / "report.html").is_file()
    before = (run.output / "results.jsonl").read_bytes()
    # The same by flags alone, and the table of the file.
    status, again, err = run("--clip=bundles/clip", f"--geneval_images={folder}", words=())
    assert status == 0 and "hint: write" in err, err
    assert (run.output / "results.jsonl").read_bytes() == before
    results = ("geneval", str(run.output / "results.jsonl"))
    status, table, err = run(detector=None, words=results)
    assert status == 0 and table.splitlines()[:2] == out.splitlines()[:2], err


def test_what_does_not_go_together_is_refused(run, folder, monkeypatch):
    status, _, err = run("--clip=bundles/clip", detector=None)
    assert status == 2 and "--detector is missing" in err
    status, _, err = run()
    assert status == 2 and "4 images of" in err and "give --clip" in err
    with monkeypatch.context() as patch:
        patch.setattr(geneval_rules, "CLASSES", geneval_rules.CLASSES[:20])
        status, _, err = run("--clip=x")
    assert status == 2 and "has 80 classes, and GenEval is of COCO's 20" in err
    status, _, err = run("--clip=x", words=("geneval", str(folder / "00000" / "metadata.jsonl")))
    assert status == 2 and "--detector is for a folder of images" in err
    run.output.mkdir(exist_ok=True)
    (run.output / "results.jsonl").write_text("{}")
    for path in (run.output / geneval_images.PARTS_FOLDER).glob("*"):
        path.unlink()
    status, _, err = run("--clip=x")
    assert status == 2 and "holds results.jsonl, which this command did not write" in err
    status, _, err = run(words=("images",))
    assert status == 2 and "--detector is of geneval, not of images" in err
