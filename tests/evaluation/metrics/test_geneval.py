"""GenEval's table from results files."""

import json

import pytest

from dimo_jax.common.errors import InputError
from dimo_jax.data.benchmark_prompts import GENEVAL_TAGS
from dimo_jax.evaluation.metrics import geneval

# Correct images of four, for each tag two prompts.
CORRECT = {
    "single_object": (4, 4),
    "two_object": (3, 1),
    "counting": (0, 2),
    "colors": (4, 2),
    "position": (0, 0),
    "color_attr": (1, 0),
}


def write(path, correct, **change):
    lines = []
    for tag, counts in correct.items():
        for n, count in enumerate(counts):
            for k in range(4):
                line = {
                    "filename": f"{tag}{n}/samples/{k:05d}.png",
                    "tag": tag,
                    "prompt": f"{tag} {n}",
                    "correct": k < count,
                    "reason": "",
                    "metadata": "{}",
                    "details": "{}",
                }
                lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_overall_score_is_the_mean_of_the_tags(tmp_path):
    correct = {**CORRECT, "colors": (4, 2, 4)}  # one prompt more, so that images weigh otherwise
    found = geneval.summarise(write(tmp_path / "results.jsonl", correct))
    assert found.tags["two_object"] == (4, 8) and found.tags["colors"] == (10, 12)
    assert list(found.tags) == list(GENEVAL_TAGS)
    assert found.overall == pytest.approx((1 + 4 / 8 + 2 / 8 + 10 / 12 + 0 + 1 / 8) / 6)
    assert (found.num_images, found.num_prompts) == (52, 13)
    assert found.images == pytest.approx(25 / 52) and found.prompts == pytest.approx(9 / 13)
    table = geneval.in_words(found).splitlines()
    assert table[0].split() == [
        "overall", "single", "two", "counting", "colors", "position", "attribution",
    ]  # fmt: skip
    assert table[1].split() == ["0.45", "1.00", "0.50", "0.25", "0.83", "0.00", "0.12"]
    assert len(set(map(len, table[:2]))) == 1
    assert table[2].startswith("52 images of 13 prompts; correct images 48.08%")
    assert table[3].startswith("PARTIAL, not comparable with published scores")
    assert "the file has 2 of 80 prompts of single_object, 2 of 99 prompts of two_o" in table[3]
    plain = found.as_dict()
    assert plain["geneval_overall"] == found.overall and plain["geneval_colors"] == 10 / 12
    json.dumps(plain)


def test_a_missing_tag_has_no_overall_score(tmp_path):
    some = {tag: CORRECT[tag] for tag in ("counting", "single_object")}
    found = geneval.summarise(write(tmp_path / "results.jsonl", some))
    assert found.overall is None and list(found.tags) == ["single_object", "counting"]
    table = geneval.in_words(found).splitlines()
    assert table[1].split() == ["-", "1.00", "-", "0.25", "-", "-", "-"]
    assert table[4] == "no overall score: the file has no two_object, colors, position, color_attr"
    assert "0 of 99 prompts of two_object" in table[3]


# Prompts of each tag in GenEval's evaluation_metadata.jsonl, counted there.
PROMPTS = {
    **{"single_object": 80, "two_object": 99, "counting": 80},
    **{"colors": 94, "position": 100, "color_attr": 100},
}


def test_a_file_that_lacks_lines_says_so(tmp_path):
    path = write(tmp_path / "results.jsonl", {tag: (2,) * num for tag, num in PROMPTS.items()})
    found = geneval.summarise(path)
    assert (found.num_images, found.num_prompts, found.partial) == (2212, 553, ())
    assert found.overall == 0.5 and len(geneval.in_words(found).splitlines()) == 3
    lines = path.read_text().splitlines()
    del lines[4 * 85 : 4 * 86], lines[1]
    path.write_text("\n".join(lines))
    found = geneval.summarise(path)
    assert found.partial == (
        "98 of 99 prompts of two_object",
        "1 prompts without 4 images ('single_object 0' has 3)",
    )
    text = geneval.in_words(found).splitlines()[3]
    assert text.startswith("PARTIAL") and all(x in text for x in found.partial)
    assert found.as_dict()["geneval_partial"] == list(found.partial)


GOOD = {"filename": "a", "tag": "colors", "prompt": "x", "correct": True}


@pytest.mark.parametrize(
    "lines, complaint",
    [
        ([GOOD, "{"], "line 2, is not JSON"),
        ([GOOD, {**GOOD, "filename": "b", "tag": "colours"}], "line 2, has the tag 'colours'"),
        ([{**GOOD, "correct": 1}], "line 1, has .* expected three texts, and true or false"),
        ([{"filename": "a", "tag": "colors"}], "line 1, lacks prompt, correct; expected filename"),
        ([GOOD, GOOD], "line 2, repeats a; give the file of one evaluation"),
        ([], "has no results; give the file of GenEval's evaluate_images.py"),
    ],
)
def test_malformed_results_are_refused(lines, complaint, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    with pytest.raises(InputError, match=complaint):
        geneval.summarise(path)
    with pytest.raises(InputError, match="cannot read"):
        geneval.summarise(tmp_path / "none.jsonl")
