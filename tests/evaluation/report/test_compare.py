import json

import pytest

from dimo_jax import config as configs
from dimo_jax.common.errors import InputError
from dimo_jax.config import default_config
from dimo_jax.evaluation.report import compare
from tests.helpers import evaluated_folders as folders
from tests.helpers.evaluated_folders import Page, Tables, row


def markdown_table(text, heading):
    lines = text.split(heading)[1].split("\n## ")[0].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rows]


@pytest.fixture
def runs(tmp_path):
    other = folders.paper_rows()
    other[-1] = row("generator", 1, fid=6.5, inception_score=200.0)
    records = [{"stage": "distill", "step": i, "train/loss": 1.0 + i} for i in range(5)]
    paths = [
        folders.write(
            tmp_path / "runs" / name,
            folders.inception_results(rows, title=name),
            pictures=("generator", "teacher_04_steps"),
            records=records,
        )
        for name, rows in (("first", None), ("second", other))
    ]
    return paths


def test_runs_stand_side_by_side_model_by_model(runs):
    found = compare.compare(runs)
    table = markdown_table(found.markdown, "## Figures")
    assert table[0][:3] == ["run", "FID", "IS"]
    first, second = table[2:4]
    assert first[:2] == ["generator, 1 step: A: first", "6.91 ± 0.01"]
    assert second[:2] == ["generator, 1 step: B: second", "**6.50 ± 0.01**"]
    assert first[2] == "**214.00 ± 0.01**" and second[3] == "–"
    assert [line[0].split(":")[0] for line in table[4::2]] == [
        "teacher, 4 steps", "teacher, 8 steps", "teacher, 16 steps"
    ]  # fmt: skip
    assert "not comparable" not in found.markdown


def test_the_page_has_grids_curves_and_the_same_figures(runs):
    text = compare.compare(runs, title="Two <runs>").html
    page = Page(text)
    assert page.problems == [] and "Two <runs>" in page.text
    figures = Tables(text).found["Figures of the runs, model by model"]
    assert figures[1:4] == [
        ["generator, 1 step"],
        ["A: first", "6.91 ± 0.01", "214.00 ± 0.01", "0.828 ± 0.010", "0.377 ± 0.010",
         "1.255 ± 0.010", "0.967 ± 0.010"],
        ["B: second", "6.50 ± 0.01", "200.00 ± 0.01", "–", "–", "–", "–"],
    ]  # fmt: skip
    assert len(page.all("img")) == 4
    loss = [c["aria-label"] for c in page.all("svg", role="img") if "loss" in c["aria-label"]]
    assert len(loss) == 1 and "A: first" in loss[0] and "B: second" in loss[0]
    assert Tables(text).found["The runs"][2] == [
        "B: second", "second", "dimo", "50,000", "0", "yes"
    ]  # fmt: skip
    assert Tables(text).found["Settings and provenance that differ"][1:] == [
        ["title", "first", "second"]
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"protocol": {"name": "adm"}}, "protocol adm, not dimo"),
        ({"settings": {"num_samples": 5000}}, "number of samples 5,000, not 50,000"),
        ({"hashes": {"reference": "00" * 32}}, "reference 000000000000…, not abababababab…"),
        ({"hashes": {"weights": "00" * 32}}, "feature network 000000000000…, not cdcdcdcdcdcd…"),
        ({"protocol": {"name": "dimo", "num_neighbours": 5}}, "k 5, not 3"),
        ({"rows": [row("generator", 1, accuracy=1.0)]}, "no metric in common"),
    ],
)
def test_what_was_measured_in_another_way_is_marked(tmp_path, change, reason):
    first = folders.write(tmp_path / "first", folders.inception_results())
    rows = [row("generator", 1, fid=0.5), row("teacher", 16, fid=0.25)]
    other = folders.inception_results(rows) | change
    found = compare.compare([first, folders.write(tmp_path / "other", other)])
    assert f"**B: other** is not comparable with A: {reason}." in found.markdown
    page = Page(found.html)
    assert f"B: other is not comparable with A: {reason}." in page.text
    assert "B: other (not comparable)" in page.text
    assert Tables(found.html).found["The runs"][2][-1] == "no"
    # Its lower FID is shown, but does not count as the better one.
    assert "**0.50" not in found.markdown and "**0.25" not in found.markdown
    assert 'class="best">0.50' not in found.html


def test_the_training_settings_that_differ_come_first(runs, tmp_path):
    for folder, rate, title in zip(runs, (1e-5, 3e-5), ("one", "two"), strict=True):
        config = default_config().to_dict()
        config["distill"]["generator"]["optimizer"]["learning_rate"] = rate
        config["title"] = title
        (folder / "config.json").write_text(json.dumps(config))
    found = compare.compare(runs)
    expected = ["distill.generator.optimizer.learning_rate", "1e-05", "3e-05"]
    table = markdown_table(found.markdown, "## Training settings that differ")
    assert table[0] == ["config", "A: first", "B: second"] and table[2:] == [expected]
    assert found.markdown.index("## Training settings") < found.markdown.index("## Figures")
    assert Tables(found.html).found["Training settings that differ"][1:] == [expected]
    page = Page(found.html)
    assert page.problems == [] and page.text.index(expected[0]) < page.text.index("Figures of")
    # A third without a config of its own is in the table, and decides nothing.
    third = folders.write(tmp_path / "third", folders.inception_results())
    found = compare.compare([*runs, third])
    table = markdown_table(found.markdown, "## Training settings that differ")
    assert table[2:] == [[*expected, "–"]]
    assert "Training settings" not in compare.compare([runs[0], third]).markdown


def test_training_settings_that_are_the_same_or_in_the_results(runs, tmp_path):
    config = default_config().to_dict()
    (runs[0] / "config.json").write_text(json.dumps(config))
    flat = json.loads(json.dumps(configs.flat(config)))
    paths = [
        folders.write(tmp_path / f"{seed}", folders.inception_results(training={**flat, **change}))
        for seed, change in (("a", {}), ("b", {"seed": 7}))
    ]
    assert "differ\n\nNone differs." in compare.compare([runs[0], paths[0]]).markdown
    found = compare.compare([runs[0], paths[1]]).markdown
    assert markdown_table(found, "## Training settings that differ")[2:] == [["seed", "0", "7"]]
    assert "seed" not in found.split("## Figures")[1]


@pytest.mark.parametrize("other", [5.0, 4.0])
def test_only_comparable_runs_compete(tmp_path, other):
    paths = []
    for name, fid, number in (("a", 5.0, 50000), ("b", 6.0, 50000), ("c", other, 5000)):
        results = folders.inception_results([row("generator", 1, fid=fid)])
        results["settings"]["num_samples"] = number
        paths.append(folders.write(tmp_path / name, results))
    table = markdown_table(compare.compare(paths).markdown, "## Figures")
    assert [line[1] for line in table[2:]] == [
        "**5.00 ± 0.01**", "6.00 ± 0.01", f"{other:.2f} ± 0.01"
    ]  # fmt: skip


def test_what_a_run_does_not_tell_is_not_held_against_it(tmp_path):
    first = folders.write(tmp_path / "a", folders.inception_results())
    other = folders.write(tmp_path / "b", {"rows": [row("generator", 1, fid=5.0)]})
    assert compare.load([first, other])[1].differences == []


def test_temperatures_of_one_run_stay_apart(tmp_path):
    rows = [row("generator", 1, {"temperature": t}, fid=float(t)) for t in (1, 3)]
    paths = [folders.write(tmp_path / name, {"rows": rows}) for name in "ab"]
    table = markdown_table(compare.compare(paths).markdown, "## Figures")
    assert [line[0] for line in table[2:]] == [
        f"generator, 1 step, temperature {t}: {run}: {run.lower()}" for t in (1, 3) for run in "AB"
    ]


def test_names_are_as_long_as_it_takes_to_tell_them_apart(tmp_path):
    paths = [tmp_path / one / "report" for one in ("x", "y")]
    for path in paths:
        folders.write(path, {"rows": []})
    assert [run.name for run in compare.load(paths)] == ["A: x/report", "B: y/report"]
    assert [run.name for run in compare.load([paths[0]] * 2)] == ["A: report", "B: report"]


def test_a_missing_file_is_one_clear_error(runs, tmp_path):
    with pytest.raises(InputError, match="gone has no results.json; name a run"):
        compare.compare([runs[0], tmp_path / "gone"])
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "results.json").write_text("{")
    with pytest.raises(InputError, match="torn.results.json is not JSON"):
        compare.compare([runs[0], tmp_path / "torn"])


@pytest.mark.parametrize("number", [0, 1, 9])
def test_two_to_eight_runs_are_compared(runs, number):
    with pytest.raises(InputError, match=f"{number} runs were given to compare; give 2 to 8"):
        compare.compare(runs[:1] * number)


def test_hostile_names_stay_text_in_both_forms(tmp_path):
    name = '<script>alert(1)</script>| a `b` \\ "c" \ud800\x00'
    results = folders.inception_results([row(name, 2, **{name: 1.0})], title=name)
    paths = [folders.write(tmp_path / run, results | {run: name}) for run in "ab"]
    found = compare.compare(paths, title=name)
    assert Page(found.html).problems == []
    assert "<script" not in found.html and "<script" not in found.markdown
    table = markdown_table(found.markdown, "## Figures")
    assert {len(line) for line in table} == {2}, "a bar in a name makes no column"
    compare.write(paths, tmp_path / "out", title=name)


def test_eight_runs_without_rows(tmp_path):
    paths = [folders.write(tmp_path / str(i), {"rows": []}) for i in range(8)]
    written = compare.write(paths, tmp_path / "out")
    assert [path.name for path in written] == ["compare.md", "compare.html"]
    page = Page(written[1].read_text(encoding="utf-8"))
    assert page.problems == [] and "There is no measurement" in page.text
