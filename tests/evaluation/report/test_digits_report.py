import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from dimo_jax.common import versions
from dimo_jax.evaluation.evaluate_models import Evaluation, ProtocolSettings
from dimo_jax.evaluation.metrics.rows import Row, Value
from dimo_jax.evaluation.report import digits_report, page, schema
from dimo_jax.evaluation.shown import Shown, Tile
from tests.helpers.evaluated_folders import Page

PROVENANCE = {
    "seed": 7,
    "versions": {"jax": "1.2.3"},
    "device": {"platform": "cpu"},
    "wall_seconds": 12.34,
    "hashes": {"teacher": "abc", "generator": "def"},
    "command": "python -m something",
}
KEYS = [("test_split", 0), ("teacher", 1), ("teacher", 16), ("generator", 1)]
NAMES = """frechet_features frechet_pixels accuracy precision recall density coverage
    duplicates copies entropy""".split()


def row(model, steps, features, std=0.1):
    values = dict.fromkeys(NAMES, 0.25) | {"frechet_features": features}
    metrics = {name: Value(value, std) for name, value in values.items()}
    per_class = {
        "frechet_features": [Value(1.5, 0.25), None],
        "accuracy": [Value(1.0), Value(0.5)],
    }
    return Row(model, steps, metrics, {"guidance": 1.5}, per_class)


def tile(gray, label, predicted, distance):
    image = np.full((8, 8, 1), gray, np.uint8)
    return Tile(image, image * 0, distance, label, predicted)


@pytest.fixture
def evaluation():
    draw = np.random.default_rng(0)
    labels = np.arange(20, dtype=np.int32) % 10
    pixels = draw.integers(0, 256, (5, 20, 8, 8, 1), np.uint8)
    shown = [Shown(*key, 1, labels, images) for key, images in zip(KEYS, pixels, strict=False)]
    shown[-1] = shown[-1]._replace(
        neighbours=pixels[4],
        worst=[tile(64, 3, 8, 4.0), tile(128, 1, 1, 2.0)],
        best=[tile(191, 2, 2, 0.5), tile(255, 7, 7, 1.0)],
    )
    metrics = {"frechet_features": Value(1.25), "frechet_pixels": Value(2.5)}
    candidate = Row("teacher", 4, metrics, {"guidance": 1.5})
    return Evaluation(
        rows=[
            row("teacher", 1, 6.5),
            row("teacher", 16, 0.8),
            row("generator", 1, 0.6),
            row("test_split", 0, 0.7, std=0.0),
        ],
        sweep=[(candidate, True), (candidate, False)],
        shown=shown,
        settings=ProtocolSettings(
            num_samples=40,
            seeds=(1, 2),
            teacher_steps=(1, 16),
            sweep_steps=(4,),
            sweep_num_samples=30,
            sweep_seed=0,
            num_neighbours=5,
            num_pictures=20,
        ),
    )


@pytest.fixture
def written(evaluation, tmp_path):
    paths = digits_report.write(tmp_path / "out", evaluation, title="Digits", provenance=PROVENANCE)
    return tmp_path / "out", paths


def test_results_json_has_the_rows_and_the_provenance(written, evaluation):
    results = json.loads((written[0] / "results.json").read_text())
    assert list(results["rows"][0]) == ["model", "steps", "metrics", "sampler"]
    assert results["rows"][2]["metrics"]["frechet_features"] == {"mean": 0.6, "std": 0.1}
    assert results["sweep"][0] == {
        **{"steps": 4, "sampler": {"guidance": 1.5}, "chosen": True},
        **{"frechet_features": 1.25, "frechet_pixels": 2.5},
    }
    assert results["metrics"]["recall"].endswith("samples' manifold, in pixels")
    assert {name: results[name] for name in PROVENANCE} == PROVENANCE
    assert results["settings"]["seeds"] == [1, 2]
    found = schema.read(written[0])
    assert [(x.model, x.metrics) for x in found.rows] == [
        (x.model, x.metrics) for x in evaluation.rows
    ]
    assert [x.per_class for x in found.per_class.rows] == [x.per_class for x in evaluation.rows]


def test_the_headline_names_the_generators_steps(evaluation):
    rows = evaluation.rows
    assert "of the generator in one step is" in digits_report.headline(rows)[0]
    several = [dataclasses.replace(x, steps=2) if x.model == "generator" else x for x in rows]
    assert "of the generator in 2 steps is" in digits_report.headline(several)[0]


def test_samples_of_texts_are_named_by_them(evaluation, tmp_path):
    texts = tuple(f"emoji {number}" for number in range(20))
    shown = [one._replace(texts=texts) for one in evaluation.shown]
    evaluation = dataclasses.replace(evaluation, shown=shown, balanced=False)
    digits_report.write(tmp_path, evaluation, title="Emoji", provenance=PROVENANCE)
    report = (tmp_path / "report.md").read_text()
    assert "of the test split's texts in turn" in report and "The same texts everywhere" in report
    assert "|  | texts emoji 0, emoji 1, " in report and "emoji 8" not in report
    first = schema.read(tmp_path).pictures[0]
    assert list(first.labels) == list(texts) and first.columns == 8
    assert Page(page.write(tmp_path, title="Emoji").read_text(encoding="utf-8")).problems == []


def test_every_picture_of_the_report_exists_and_no_other_file(written):
    folder, paths = written
    text = (folder / "report.md").read_text()
    linked = set(re.findall(r"\]\((.*?)\)", text))
    assert linked == {
        "pictures/all.png",
        "pictures/neighbours.png",
        "pictures/worst.png",
        "pictures/best.png",
        "pictures/teacher_01_steps.png",
        "pictures/teacher_16_steps.png",
        "pictures/generator.png",
        "pictures/test_split.png",
    }
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == linked | {"report.md", "results.json"}
    assert {str(path.relative_to(folder)) for path in paths} == files


def test_results_json_describes_pictures_classes_and_ends(written):
    results = json.loads((written[0] / "results.json").read_text())
    assert results["protocol"] == {"name": "digits"} and results["title"] == "Digits"
    files = {str(path.relative_to(written[0])) for path in (written[0] / "pictures").iterdir()}
    assert {entry["file"] for entry in results["pictures"]} == files
    first = results["pictures"][0]
    expected = {"kind": "samples", "model": "test_split", "steps": 0, "seed": 1, "columns": 10}
    assert expected.items() <= first.items()
    assert first["labels"] == [*range(10), *range(10)]
    classes = results["per_class"]
    assert classes["names"] == ["0", "1"] and classes["num_samples"] == 20
    assert classes["rows"][0]["metrics"]["frechet_features"] == [{"mean": 1.5, "std": 0.25}, None]
    assert results["extremes"]["worst"][0] == {"label": 3, "predicted": 8, "value": 4.0}
    worst = np.asarray(Image.open(written[0] / "pictures" / "worst.png"))
    # The samples in the upper row, what they were compared with in the lower.
    height = worst.shape[0]
    assert worst[height // 4, 4].tolist() == [64] * 3 and worst[3 * height // 4, 4].max() == 0


def test_a_page_can_be_made_of_what_is_written(written):
    text = page.write(written[0], title="Digits").read_text(encoding="utf-8")
    found = Page(text)
    assert found.problems == []
    assert len(found.all("img")) == 7, "all but the overview, whose rows are there one by one"
    assert "seen as 8" in found.text


def test_pictures_hold_the_samples_in_columns_by_label(written, evaluation):
    found = np.asarray(Image.open(written[0] / "pictures" / "generator.png"))
    pixels = evaluation.shown[-1].first.astype(int)
    assert found.shape[0] < found.shape[1]
    # Two rows of ten: the centre of the first pixel of the twelfth image lies in the second row.
    step_y, step_x = (found.shape[0] - 2) / 2, (found.shape[1] - 2) / 10
    at = found[int(2 + step_y + 2), int(2 + step_x + 2)]
    assert abs(int(at.flat[0]) - pixels[11, 0, 0, 0]) <= 1


def test_neighbours_stand_below_their_samples(written, evaluation):
    found = np.asarray(Image.open(written[0] / "pictures" / "neighbours.png"))
    generator = evaluation.shown[-1]
    # Four rows of ten; a tile is 40 pixels and a gap of 2, behind the rows' names.
    left = found.shape[1] - 10 * 42
    rows = [found[42 * i + 4, left + 2 :: 42, 0] for i in range(4)]
    first, nearest = generator.first[:, 0, 0, 0], generator.neighbours[:, 0, 0, 0]
    expected = [first[:10], nearest[:10], first[10:], nearest[10:]]
    for values, right in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(values, right)


def table_after(text, heading):
    lines = text.split(f"## {heading}")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in x.strip("|").split("|")] for x in lines if x.startswith("|")]
    return rows[0], rows[2:]


def test_the_table_says_what_was_measured(written):
    text = (written[0] / "report.md").read_text()
    head, rows = table_after(text, "Results")
    assert head[:3] == ["model", "steps", "Fréchet, features"]
    assert all(len(row) == len(head) == len(NAMES) + 3 for row in rows)
    assert [row[0] for row in rows] == ["teacher", "teacher", "generator", "test split"]
    assert rows[1][1:3] == ["16", "0.80 ± 0.10"]
    assert rows[1][head.index("copies, %")] == "25.00 ± 10.00"
    assert rows[1][-1] == "guidance 1.5"
    assert rows[3][1:3] == ["", "0.70"]
    assert "features of the generator in one step is 0.60 ± 0.10" in " ".join(
        line.replace("in features of", "features of") for line in text.splitlines()
    )
    assert "0.80 ± 0.10 (16 steps): 0.75 times" in text


def test_the_sweep_and_the_provenance_are_in_the_report(written):
    text = (written[0] / "report.md").read_text()
    _, sweep = table_after(text, "The teacher's samplers")
    assert sweep == [["4", "guidance 1.5", "1.25", "2.50", mark] for mark in ("chosen", "")]
    _, provenance = table_after(text, "Provenance")
    assert ["hashes: generator", "def"] in provenance
    assert ["wall seconds", "12.34"] in provenance
    assert ["versions: jax", "1.2.3"] in provenance


def test_incomplete_provenance_and_numbers_that_are_none_write_nothing(evaluation, tmp_path):
    missing = {name: value for name, value in PROVENANCE.items() if name != "hashes"}
    with pytest.raises(ValueError, match="lacks hashes"):
        digits_report.write(tmp_path, evaluation, title="Digits", provenance=missing)
    first, *others = evaluation.rows
    first = dataclasses.replace(first, metrics={**first.metrics, "density": Value(float("nan"))})
    evaluation = dataclasses.replace(evaluation, rows=[first, *others])
    with pytest.raises(ValueError):
        digits_report.write(tmp_path, evaluation, title="Digits", provenance=PROVENANCE)
    assert not list(tmp_path.iterdir())


def test_environment_names_versions_and_the_device():
    found = versions.environment(code="abc")
    assert found["versions"]["code"] == "abc" and "jax" in found["versions"]
    assert found["device"]["platform"] == "cpu"
    json.dumps(found)
