import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.report import page, run_folders
from tests.helpers import evaluated_folders as folders
from tests.helpers.evaluated_folders import Page, Tables, row

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)> & \'"/>' + "é" * 300
HOSTILE += "\ud800\x00"
RECORDS = [
    {"stage": "distill", "step": 10 * i, "train/loss": 2.0 / (i + 1), "train/updates": 0.0,
     "eval/fid_5k": 30.0 - i, "time/steps_per_second": 3.0}
    for i in range(20)
]  # fmt: skip


def made(tmp_path, results, title="A title", **options):
    workdir = options.pop("workdir", None)
    folder = folders.write(tmp_path / "eval", results, **options)
    path = page.write(folder, title=title, workdir=workdir)
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert found.problems == []
    return found, text


def headings(found):
    return [attributes["id"] for attributes in found.all("section")]


def test_the_headline_table_has_the_papers_columns(tmp_path):
    found, text = made(tmp_path, folders.inception_results())
    rows = Tables(text).found["Teacher and generator"]
    expected = ["model", "steps", "FID", "IS", "precision", "recall", "density", "coverage"]
    assert rows[0] == expected
    assert rows[1][:4] == ["teacher", "16", "6.60 ± 0.01", "224.07 ± 0.01"]
    assert rows[4][0] == "generator" and rows[4][4] == "0.828 ± 0.010", "three decimals of 50,000"
    assert text.count("lower is better</span>") == 1, "FID's direction, for a screen reader"
    assert "The teacher needs 8 steps for a better value: 6.66" in found.text
    for fact in ("dimo", "50,000", "the code of the paper"):
        assert fact in found.text
    assert "does not compare" not in found.text


def test_the_best_value_is_marked_and_real_images_do_not_compete(tmp_path):
    rows = [
        row("teacher", 4, frechet_features=2.0, precision=0.9),
        row("generator", 1, frechet_features=1.0, precision=0.5),
        row("test_split", 0, frechet_features=0.5, precision=1.0),
    ]
    found, text = made(tmp_path, {"rows": rows})
    marked = [line for line in text.splitlines() if "(best)" in line]
    assert len(marked) == 2
    assert 'class="best">0.90 ± 0.01' in marked[0] and 'class="best">1.00 ± 0.01' in marked[1]
    assert "No step count of the teacher that was measured does better" in found.text


def test_few_samples_are_said_not_to_compare_with_50000(tmp_path):
    results = folders.inception_results(settings={"num_samples": 5000})
    found, _ = made(tmp_path, results)
    assert "These figures are of 5,000 samples. A FID of so few" in found.text


def test_what_is_missing_is_left_out(tmp_path):
    found, _ = made(tmp_path, {"rows": [row("generator", 1, fid=5.0)]})
    assert headings(found) == ["results", "provenance"]
    assert not found.all("img") and not found.all("figure")


def digits_results():
    samplers = [{"guidance": 1.0, "choice_temperature": t} for t in (4.5, 10.0)]
    return {
        "rows": [
            row("teacher", 1, frechet_features=2.5, accuracy=0.8, entropy=2.0),
            row("teacher", 8, frechet_features=0.5, accuracy=0.9, entropy=2.0),
            row("generator", 1, frechet_features=0.75, accuracy=0.95, entropy=2.0),
        ],
        "metrics": {"entropy": "mean entropy of a token"},
        "settings": {"num_samples": 600, "seeds": [3, 4], "num_neighbours": 5},
        "sweep": [
            {"steps": 8, "sampler": sampler, "frechet_features": value, "chosen": value < 1}
            for sampler, value in zip(samplers, (1.5, 0.5), strict=True)
        ],
        "per_class": {
            "names": ["zero", "one"],
            "num_samples": 300,
            "metrics": {"frechet_features": "of a class"},
            "rows": [
                {
                    "model": model,
                    "steps": steps,
                    "metrics": {"frechet_features": [{"mean": value, "std": 0.0}, None]},
                }
                for model, steps, value in (("teacher", 8, 1.5), ("generator", 1, 2.5))
            ],
        },
        "extremes": {
            "by": "distance to the nearest",
            "worst": [{"label": 3, "predicted": 8, "value": 2.25}] * 2,
            "best": [{"label": 1, "predicted": 1, "value": 0.125}] * 2,
        },
        "pictures": [
            {"file": "pictures/generator.png", "kind": "samples", "model": "generator",
             "steps": 1, "labels": [0, 1, 0, 1], "columns": 2, "seed": 3},
            {"file": "pictures/teacher_08_steps.png", "kind": "samples", "model": "teacher",
             "steps": 8, "labels": [0, 1, 0, 1], "columns": 2, "seed": 3},
            {"file": "pictures/neighbours.png", "kind": "neighbours", "columns": 2},
            {"file": "pictures/worst.png", "kind": "worst", "columns": 2},
            {"file": "pictures/best.png", "kind": "best", "columns": 2},
        ],
        "versions": {"jax": "1.2.3"},
    }  # fmt: skip


PICTURES = ("generator", "teacher_08_steps", "neighbours", "worst", "best")


def test_a_whole_evaluation_has_every_section(tmp_path):
    found, text = made(tmp_path, digits_results(), pictures=PICTURES, records=RECORDS)
    assert headings(found) == [
        "results", "samples", "neighbours", "ends", "classes", "temperature", "training",
        "provenance",
    ]  # fmt: skip
    assert len(found.all("img")) == 5
    assert all(image["src"].startswith("data:image/png;base64,") for image in found.all("img"))
    assert "sampling seed 3" in found.text and "0, 1 in columns" in found.text
    assert found.all("img")[0]["alt"] == (
        "Images: generator, 1 step; 4 in rows of 2, labels 0, 1"
    )  # fmt: skip
    tables = Tables(text).found
    classes = tables["Fréchet, features by class (lower is better)"]
    assert classes[1] == ["zero", "1.50", "2.50"] and classes[2] == ["one", "–", "–"]
    assert tables["Provenance"][1:][-1] == ["versions: jax", "1.2.3"]
    assert "mean entropy of a token; no end is the better one" in found.text
    assert "Ordered by distance to the nearest" in found.text
    assert "eval: fid 5k" in found.text and "steps per second" not in found.text
    assert "Constant, not drawn: distill: updates 0" in found.text
    charts = [chart["aria-label"] for chart in found.all("svg", role="img")]
    assert any(
        "choice temperature" in label and "1.5 at 4.5, 0.5 at 10" in label for label in charts
    )


def test_temperature_curves_are_of_rows_that_differ_in_nothing_else(tmp_path):
    rows = [
        row("generator", 1, {"temperature": t, "name": "one_step"}, fid=abs(t - 5) + 6.0)
        for t in (9, 1, 5)
    ]
    rows.append(row("generator", 1, {"temperature": 3, "name": "other"}, fid=50.0))
    found, text = made(tmp_path, {"rows": rows})
    labels = [chart["aria-label"] for chart in found.all("svg", role="img")]
    assert labels == ["FID (lower is better) over temperature. generator, 1 step: "
                      "10 at 1, 6 at 5, 10 at 9."]  # fmt: skip
    table = Tables(text).found["Teacher and generator"]
    assert table[0][2] == "temperature" and [line[2] for line in table[1:]] == ["9", "1", "5", "3"]


def hostile(value):
    """Every string of nested results replaced, names of models and files aside."""
    if isinstance(value, dict):
        kept = ("model", "kind", "file")
        return {
            f"{name}<b>" if name == "jax" else name: entry if name in kept else hostile(entry)
            for name, entry in value.items()
        }
    if isinstance(value, list):
        return [hostile(entry) for entry in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_stays_text(tmp_path):
    results = hostile(digits_results())
    results["rows"].append(row(HOSTILE, 3, {"name": HOSTILE, HOSTILE: 1}, **{HOSTILE: 1.0}))
    records = [{"stage": HOSTILE, "step": i, f"train/{HOSTILE}": i} for i in range(3)]
    found, text = made(tmp_path, results, HOSTILE, pictures=PICTURES, records=records)
    assert "<script" not in text and "<img src=x" not in text
    assert HOSTILE.split("é")[0] in found.text


@pytest.mark.parametrize("number", [0, 1, 60])
def test_any_number_of_rows(tmp_path, number):
    rows = [row("teacher", i + 1, fid=5.0 + i, precision=0.5) for i in range(number)]
    found, text = made(tmp_path, {"rows": rows})
    if number:
        assert len(Tables(text).found["Teacher and generator"]) == number + 1
    else:
        assert "There is no measurement in these results." in found.text


def test_a_number_that_is_none_is_a_dash(tmp_path):
    rows = [row("teacher", 4, fid=float("nan"), precision=0.5), row("generator", 1, fid=5.0)]
    rows[1]["metrics"]["fid"]["std"] = float("inf")
    rows[0]["metrics"]["recall"] = {"mean": None}
    found, text = made(tmp_path, {"rows": rows, "wall_seconds": float("nan")})
    table = Tables(text).found["Teacher and generator"]
    assert [line[2:] for line in table[1:]] == [["–", "0.50 ± 0.01", "–"], ["5.00", "–", "–"]]
    shown = text.split("Provenance</h2>")[0]
    assert not re.search(r"\b(nan|inf|infinity)\b", shown.split("</style>")[1].lower())


def test_a_torn_last_line_of_the_record_is_left_out(tmp_path):
    text = "".join(json.dumps(record) + "\n" for record in RECORDS[:5]) + '{"stage": "distill", "st'
    found, _ = made(tmp_path, {"rows": []}, records=text)
    labels = [chart["aria-label"] for chart in found.all("svg", role="img")]
    assert any("loss over step" in label and "at 40" in label for label in labels)


def test_the_charts_of_a_long_run_are_small_and_each_its_own(tmp_path):
    records = [
        {"stage": stage, "step": i, "train/loss": 1.0 + (i * 7919 % 1000) / 1000}
        | ({"eval/fid": 9.5 - i / 1000} if i % 2000 == 0 else {})
        for stage in ("one", "two")
        for i in range(5000)
    ]
    found, text = made(tmp_path, {"rows": []}, records=records)
    charts = re.findall("<svg.*?</svg>", text, re.S)
    assert len(charts) == 4 and max(map(len, charts)) < 12_000
    assert "each point is the mean of 21 records" in found.text
    # The same marks are drawn in both stages: made() has checked that no id is there twice.
    hrefs = [use["href"] for use in found.all("use")]
    assert len({href.rpartition("-")[0] for href in hrefs}) == 4
    assert len({href.rpartition("-")[2] for href in hrefs}) == 2, "a tick and a circle"
    titles = re.findall(r"<title>(eval: fid: .*?)</title>", text)
    values = "9.5 at 0", "7.5 at 2,000", "5.5 at 4,000"
    assert titles == 2 * [f"eval: fid: {value}" for value in values]


def test_the_record_may_be_a_workdirs(tmp_path):
    folders.write(tmp_path / "run", {}, records=RECORDS)
    found, _ = made(tmp_path, {"rows": []}, workdir=tmp_path / "run")
    assert "training" in headings(found)
    folders.write(tmp_path, {}, records=RECORDS)
    assert "training" in headings(made(tmp_path, {"rows": []})[0]), "or one folder up"


def test_a_damaged_record_is_named(tmp_path):
    folder = folders.write(tmp_path, {"rows": []}, records="no json\n{}\n")
    with pytest.raises(InputError, match="metrics.jsonl, line 1"):
        page.write(folder, title="x")


def test_pictures_without_entries_are_known_by_their_names(tmp_path):
    names = ("generator", "teacher_16_steps", "test_split", "neighbours", "free_form")
    found, _ = made(tmp_path, folders.inception_results(), pictures=names)
    alts = [image["alt"] for image in found.all("img")]
    assert alts == [
        "Images: generator, 1 step", "Images: test split", "Images: teacher, 16 steps",
        "Images: free form", "Images: neighbours",
    ]  # fmt: skip


def test_wide_pictures_are_made_smaller_and_others_kept(tmp_path):
    folder = folders.write(tmp_path, {"rows": []}, pictures=("generator",))
    wide = np.zeros((40, 4000), np.uint8)
    Image.fromarray(wide).save(folder / "pictures" / "teacher_02_steps.png")
    page.write(folder, title="x")
    found = Page((folder / "report.html").read_text(encoding="utf-8"))
    sizes = {(image["width"], image["height"]) for image in found.all("img")}
    assert sizes == {("40", "20"), ("1600", "16")}


def test_pictures_outside_the_folder_are_not_shown(tmp_path):
    folders.write(tmp_path, {}, pictures=("secret",))
    entry = {"file": "../pictures/secret.png", "kind": "samples"}
    found, _ = made(tmp_path, {"rows": [], "pictures": [entry, "no entry", {"file": 3}]})
    assert not found.all("img")


def test_what_is_no_picture_of_the_evaluation_is_left_out(tmp_path, caplog):
    names = ("generator", "teacher_02_steps", "teacher_04_steps")
    folder = folders.write(tmp_path / "run", {"rows": []}, pictures=names) / "pictures"
    content = (folder / "generator.png").read_bytes()
    (tmp_path / "private.png").write_bytes(content)
    (folder / "elsewhere.png").symlink_to(tmp_path / "private.png")
    (folder / "beside.png").symlink_to(folder / "generator.png")
    (folder / "lost.png").symlink_to("nowhere")
    (folder / "teacher_02_steps.png").write_bytes(content[:300])
    (folder / "teacher_04_steps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    os.mkfifo(folder / "pipe.png")
    page.write(folder.parent, title="x")
    text = (folder.parent / "report.html").read_text()
    assert text.count("data:image/png") == 2  # generator and the link to it
    assert len(caplog.messages) == 5
    for name in ("elsewhere.png leads out of", "lost.png", "pipe.png", *names[1:]):
        assert any(name in message for message in caplog.messages), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "results.json is not JSON"),
        ("[]", "results.json is not a JSON object"),
        ('{"rows": 3}', 'no list "rows"'),
        ('{"rows": [{"model": "teacher"}]}', 'row 0 has no "metrics"'),
    ],
)
def test_bad_results_are_refused(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=message):
        page.write(tmp_path, title="x")


def test_results_are_found_where_they_are_kept(tmp_path):
    path = folders.write(tmp_path / "run" / "report", {"rows": []}) / "results.json"
    assert {run_folders.find(p) for p in (path, path.parent, path.parent.parent)} == {path}
    folders.write(tmp_path / "run" / "another", {"rows": []})
    assert run_folders.find(tmp_path / "run") == path, "the one that is called report"
    folders.write(tmp_path / "two" / "a", {"rows": []})
    assert run_folders.find(tmp_path / "two") == tmp_path / "two" / "a" / "results.json"
    folders.write(tmp_path / "two" / "b", {"rows": []})
    with pytest.raises(InputError, match="several evaluations.*two/a.*two/b"):
        run_folders.find(tmp_path / "two")
    with pytest.raises(InputError, match="nothing has no results.json"):
        run_folders.find(tmp_path / "nothing")


@pytest.mark.parametrize("shift", range(5))
def test_odd_entries_do_not_break_the_page(tmp_path, shift):
    names = ("sweep", "per_class", "extremes", "metrics", "settings")
    values = (None, 3, "text", [1], {"rows": [{"model": 1}], "names": 3, "worst": [{}]})
    odd = {name: values[(i + shift) % 5] for i, name in enumerate(names)}
    made(tmp_path, digits_results() | {"protocol": 3, "pictures": {}, "seed": None} | odd)


def test_of_a_thousand_classes_the_worst_are_told(tmp_path):
    results = digits_results()
    values = [{"mean": float((i * 37) % 1000), "std": 0.0} for i in range(1000)]
    entry = {"model": "generator", "steps": 1, "metrics": {"frechet_features": values}}
    results["per_class"] = {"rows": [entry]}
    _, text = made(tmp_path, results)
    caption = "Fréchet, features by class (lower is better): the 40 worst of 1000 classes"
    rows = Tables(text).found[caption]
    assert [line[1] for line in rows[1:4]] == ["999.00", "998.00", "997.00"]
    # 37 * 27 = 999: the class with the largest distance.
    assert rows[1][0] == "27" and len(rows) == 41
