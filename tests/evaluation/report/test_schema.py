"""results.json: of today, of yesterday in both dialects, and of strangers."""

import dataclasses
import json
from pathlib import Path

import pytest

from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.metrics.rows import Row, Value
from dimo_jax.evaluation.report import page, schema
from dimo_jax.evaluation.report.schema import (
    Candidate,
    Classes,
    Extreme,
    Extremes,
    Picture,
    Results,
)

FIXTURES = Path(__file__).parent / "fixtures"
PROVENANCE = {
    "seed": 7,
    "versions": {"jax": "1.2.3"},
    "device": {"kind": "abacus"},
    "wall_seconds": 1.5,
    "hashes": {"reference": "ab"},
    "precision": "float32",
}
ROW = Row(
    "generator",
    1,
    {"fid": Value(5.0, 0.5), "recall": Value(0.25)},
    {"temperature": 2.0},
    warnings=["too few"],
    rest={"num": 8, "hashes": {"samples": "cd"}},
)
OF_CLASSES = Row("generator", 1, {}, per_class={"fid": [Value(1.0), None]})
RESULTS = Results(
    [ROW, dataclasses.replace(ROW, model="teacher", steps=4, warnings=[])],
    PROVENANCE,
    "A title",
    {"name": "dimo", "about": "the paper's code"},
    {"seeds": [0, 1]},
    {"fid": "a distance"},
    [Candidate(Row("teacher", 4, {"fid": Value(6.0, None)}, {"guidance": 1.0}), True)],
    Classes([OF_CLASSES], ["zero", "one"], 4, {"fid": "of a class"}),
    Extremes("distance", "generator", [Extreme(0, 8, 2.5)], [Extreme(value=0.5)]),
    [Picture("pictures/all.png", "all", labels=[0, 1], columns=2, seed=0)],
    {"distill.num_steps": 3},
)


def test_what_is_written_is_read(tmp_path):
    path = schema.write(tmp_path / "out", RESULTS)
    content = json.loads(path.read_text())
    assert content["version"] == schema.VERSION
    assert content["rows"][0]["metrics"]["fid"] == {"mean": 5.0, "std": 0.5}
    assert content["extremes"]["worst"] == [{"label": 0, "predicted": 8, "value": 2.5}]
    found = schema.read(tmp_path)
    assert dataclasses.replace(found, path=None) == RESULTS
    # A second time nothing changes.
    schema.write(tmp_path / "again", found)
    assert json.loads((tmp_path / "again" / "results.json").read_text()) == content


def test_digits_of_yesterday():
    found = schema.read(FIXTURES / "digits_without_version.json")
    assert [row.title for row in found.rows] == ["teacher, 16 steps", "generator, 1 step",
                                                 "test split"]  # fmt: skip
    assert found.rows[1].metrics["frechet_features"] == (0.606832981339605, 0.09583424844254641)
    assert found.protocol == {"name": "digits"} and found.title == "Handwritten digits"
    assert found.setting("num_neighbours", "k") == 5 and found.num_samples == 1000
    assert [candidate.chosen for candidate in found.sweep] == [True, False]
    assert found.sweep[0].row.mean("frechet_pixels") == pytest.approx(5.36, abs=0.01)
    assert found.sweep[0].row.sampler["choice_temperature"] == 10.0
    assert found.per_class.names[:2] == ["0", "1"]
    assert len(found.per_class.rows[0].per_class["accuracy"]) == 10
    assert found.hashes["generator"].startswith("198bbe27")
    assert found.pictures[0].labels[:3] == [0, 1, 2]
    text = page.html(found, found.title)
    assert "No step count of the teacher that was measured does better" in text
    assert "0.61" in text and "share of samples inside the real manifold, in pixels" in text


def test_photographs_of_yesterday():
    found = schema.read(FIXTURES / "images_without_version.json")
    (row,) = found.rows
    assert (found.protocol["name"], found.num_samples) == ("adm", 24)
    assert list(row.metrics)[:4] == ["fid", "sfid", "inception_score_adm", "inception_score"]
    assert row.metrics["inception_score"] == (1.045963170851863, 0.02897620733828229)
    assert len(row.warnings) == 1 and row.warnings[0].startswith("24 samples: FID falls")
    assert row.rest["parts"]["prdc"]["reference_num"] == 16
    assert found.provenance["precision"].startswith("float32")
    text = page.html(found, "Photographs")
    assert "24 samples: FID falls" in text and "guided-diffusion evaluator" in text


def test_a_joint_of_yesterday():
    found = schema.read(FIXTURES / "toy_without_version.json")
    assert [row.model for row in found.rows] == ["generator", "independent", "true_joint"]
    assert found.num_samples == 50_000 and found.protocol == {}
    assert found.rows[1].mean("total_variation") == pytest.approx(0.9, abs=0.01)


def test_a_later_version_is_refused(tmp_path):
    content = schema.as_json(RESULTS) | {"version": schema.VERSION + 1}
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="written by a later version of dimo_jax; update"):
        schema.read(tmp_path)
