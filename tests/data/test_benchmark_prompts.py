"""Prompt lists of the benchmarks, well-formed and not."""

import json

import pytest

from dimo_jax.common.errors import InputError
from dimo_jax.data import benchmark_prompts

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
    {"tag": "colors", "include": [], "prompt": 'a "red" 犬/dog'},
]


def test_geneval(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(json.dumps(x, ensure_ascii=False) for x in GENEVAL) + "\n\n")
    found = benchmark_prompts.read("geneval", path)
    assert [x.text for x in found] == ["a bench", 'a "red" 犬/dog']
    assert [x.metadata for x in found] == GENEVAL


def test_hps(tmp_path):
    for style in ("photo", "anime", "paintings", "concept-art", "drawbench"):
        (tmp_path / f"{style}.json").write_text(json.dumps([f"{style} one", f"{style} two"]))
    found = benchmark_prompts.read("hpsv2", tmp_path)
    # The four styles in the order of their names; drawbench is another benchmark.
    assert [x.text for x in found] == [
        f"{style} {n}" for style in benchmark_prompts.HPS_STYLES for n in ("one", "two")
    ]
    assert found[3].metadata == {"style": "concept-art", "index": 1}
    alone = benchmark_prompts.read("hpsv2", tmp_path / "photo.json")
    assert [x.metadata["style"] for x in alone] == ["photo", "photo"]
    (tmp_path / "anime.json").unlink()
    with pytest.raises(InputError, match="has no anime.json; give HPS v2's benchmark folder"):
        benchmark_prompts.read("hpsv2", tmp_path)


def test_coco(tmp_path):
    path = tmp_path / "MS-COCO_val2014_30k_captions.csv"
    path.write_text('\ufeffimage_id,text\n391895,"A man, with a ""red"" helmet"\n60623,Zwei\n')
    found = benchmark_prompts.read("coco", path)
    assert [x.text for x in found] == ['A man, with a "red" helmet', "Zwei"]
    assert found[0].metadata == {"image_id": "391895"}


TWO = [
    benchmark_prompts.Prompt("a cat"),
    benchmark_prompts.Prompt("a/dog"),
    benchmark_prompts.Prompt("a cat"),
]


@pytest.mark.parametrize(
    ("name", "content", "field", "said"),
    [
        ("x.txt", " a cat \n\na/dog\na cat\n", None, ""),
        ("x.jsonl", '{"prompt": "a cat"}\n{"prompt": "a/dog"}\n"a cat"\n', None, ", field prompt"),
        ("x.csv", "id,caption\n1,a cat\n2,a/dog\n3,a cat\n", None, ", field caption"),
        ("x.csv", "id,text,was\n1,x,a cat\n2,y,a/dog\n3,z,a cat\n", "was", ", field was"),
        ("x.json", '["a cat", "a/dog", "a cat"]', None, ""),
    ],
)
def test_any_list_is_read_in_its_order_with_what_is_repeated(name, content, field, said, tmp_path):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    expected = benchmark_prompts.Requested("plain", TWO, f"3 prompts of {path}{said}")
    assert benchmark_prompts.requested(str(path), None, field) == expected
    assert benchmark_prompts.requested("plain", str(path), field) == expected


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("plain", None, None), "--prompts=plain needs --metadata, the list of its prompts"),
        (("coco", None, None), "--prompts=coco needs --metadata, the list of its prompts"),
        (("genevel", None, None), "--prompts=genevel is no file, and none of the benchmarks gen"),
        (("x.txt", "y.jsonl", None), "is the list of a benchmark .*--prompts=x.txt is none; leave"),
        ((None, "y.jsonl", None), "--metadata goes with --prompts; give that too"),
        ((None, None, "text"), "--prompt_field goes with --prompts; give that too"),
        (("coco", "x.csv", "text"), "--prompt_field is for other lists than that of coco"),
    ],
)
def test_flags_that_do_not_fit(flags, complaint):
    with pytest.raises(InputError, match=complaint):
        benchmark_prompts.requested(*flags)
    assert benchmark_prompts.requested(None, None, None) is None


def test_a_missing_field_names_the_flag_of_the_command(tmp_path):
    (tmp_path / "x.csv").write_text("id,title\n1,x\n")
    with pytest.raises(InputError, match="has id, title, but no .*; name .* with --prompt_field"):
        benchmark_prompts.requested(str(tmp_path / "x.csv"), None, None)
    (tmp_path / "x.txt").write_text("\n\n")
    with pytest.raises(InputError, match="has no prompts; give a list with at least one"):
        benchmark_prompts.requested(str(tmp_path / "x.txt"), None, None)


@pytest.mark.parametrize(
    "layout, text, complaint",
    [
        (
            "geneval",
            '{"tag": "colors", "prompt": "x"}\n{"tag": ',
            r"line 2, is not JSON \(.*at '{\"tag",
        ),
        ("geneval", "[1]", "line 1, is not a JSON object but a list"),
        (
            "geneval",
            '{"tag": "color", "prompt": "x"}',
            "line 1, has the prompt 'x' and the tag 'co",
        ),
        ("geneval", '\n{"tag": "colors"}', "line 2, has the prompt 'None' and the tag 'colors'"),
        ("geneval", "", "has no prompts; give the benchmark's list"),
        ("hpsv2", "[", "is not JSON"),
        ("hpsv2", '{"a": 1}', "is no list of prompts, but a dict"),
        ("hpsv2", '["a", 3]', "prompt 1 is '3', expected a text"),
        ("coco", "id,caption\n1,x\n", "has the columns id, caption, expected image_id"),
        ("coco", "image_id,text\n1,x\n2\n", "line 3, has no text or no image_id"),
        ("coco", 'image_id,text\n1,"x" y\n', "after line 1, is no CSV"),
        ("coco", 'image_id,text\n1,"x\n', "after line 1, is no CSV: unexpected end"),
        ("coco", "image_id,text\n", "has no prompts"),
    ],
)
def test_malformed_lists_are_refused_with_the_line(layout, text, complaint, tmp_path):
    (tmp_path / "list").write_text(text)
    with pytest.raises(InputError, match=complaint):
        benchmark_prompts.read(layout, tmp_path / "list")


@pytest.mark.parametrize("layout", ["geneval", "hpsv2", "coco"])
def test_files_that_cannot_be_read(layout, tmp_path):
    (tmp_path / "latin").write_bytes('image_id,text\xe9\n1,"x"'.encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8"):
        benchmark_prompts.read(layout, tmp_path / "latin")
    with pytest.raises(InputError, match="none"):
        benchmark_prompts.read(layout, tmp_path / "none")
