"""Prompt lists of the benchmarks, well-formed and not."""

import json

import pytest

from dimo_jax.errors import InputError
from dimo_jax.evaluation import prompts

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
    {"tag": "colors", "include": [], "prompt": 'a "red" 犬/dog'},
]


def test_geneval(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(json.dumps(x, ensure_ascii=False) for x in GENEVAL) + "\n\n")
    found = prompts.read("geneval", path)
    assert [x.text for x in found] == ["a bench", 'a "red" 犬/dog']
    assert [x.metadata for x in found] == GENEVAL


def test_hps(tmp_path):
    for style in ("photo", "anime", "paintings", "concept-art", "drawbench"):
        (tmp_path / f"{style}.json").write_text(json.dumps([f"{style} one", f"{style} two"]))
    found = prompts.read("hpsv2", tmp_path)
    # The four styles in the order of their names; drawbench is another benchmark.
    assert [x.text for x in found] == [
        f"{style} {n}" for style in prompts.HPS_STYLES for n in ("one", "two")
    ]
    assert found[3].metadata == {"style": "concept-art", "index": 1}
    alone = prompts.read("hpsv2", tmp_path / "photo.json")
    assert [x.metadata["style"] for x in alone] == ["photo", "photo"]
    (tmp_path / "anime.json").unlink()
    with pytest.raises(InputError, match="has no anime.json; give HPS v2's benchmark folder"):
        prompts.read("hpsv2", tmp_path)


def test_coco(tmp_path):
    path = tmp_path / "MS-COCO_val2014_30k_captions.csv"
    path.write_text('\ufeffimage_id,text\n391895,"A man, with a ""red"" helmet"\n60623,Zwei\n')
    found = prompts.read("coco", path)
    assert [x.text for x in found] == ['A man, with a "red" helmet', "Zwei"]
    assert found[0].metadata == {"image_id": "391895"}


def test_plain(tmp_path):
    (tmp_path / "x.txt").write_text(" a cat \n\na/dog\n", encoding="utf-8")
    assert prompts.read("plain", tmp_path / "x.txt") == [
        prompts.Prompt("a cat"),
        prompts.Prompt("a/dog"),
    ]


@pytest.mark.parametrize(
    "layout, text, complaint",
    [
        (
            "geneval",
            '{"tag": "colors", "prompt": "x"}\n{"tag": ',
            r"line 2, is not JSON \(.*: {\"t",
        ),
        ("geneval", "[1]", "line 1, is no JSON object: .1."),
        (
            "geneval",
            '{"tag": "color", "prompt": "x"}',
            "line 1, has the prompt 'x' and the tag 'co",
        ),
        ("geneval", '\n{"tag": "colors"}', "line 2, has the prompt None and the tag 'colors'"),
        ("geneval", "", "has no prompts; give the benchmark's list"),
        ("hpsv2", "[", "is not JSON"),
        ("hpsv2", '{"a": 1}', "is no list of prompts, but a dict"),
        ("hpsv2", '["a", 3]', "prompt 1 is 3, expected a text"),
        ("coco", "id,caption\n1,x\n", r"has the columns \['id', 'caption'\], expected image_id"),
        ("coco", "image_id,text\n1,x\n2\n", "line 3, has no text or no image_id"),
        ("coco", 'image_id,text\n1,"x" y\n', "after line 1, is no CSV"),
        ("coco", 'image_id,text\n1,"x\n', "after line 1, is no CSV: unexpected end"),
        ("coco", "image_id,text\n", "has no prompts"),
        ("plain", "\n\n", "has no prompts"),
        ("drawbench", "x", "no prompt list 'drawbench'; there are geneval, hpsv2, coco, plain"),
    ],
)
def test_malformed_lists_are_refused_with_the_line(layout, text, complaint, tmp_path):
    (tmp_path / "list").write_text(text)
    with pytest.raises(InputError, match=complaint):
        prompts.read(layout, tmp_path / "list")


@pytest.mark.parametrize("layout", ["geneval", "hpsv2", "coco", "plain"])
def test_files_that_cannot_be_read(layout, tmp_path):
    (tmp_path / "latin").write_bytes('image_id,text\xe9\n1,"x"'.encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8"):
        prompts.read(layout, tmp_path / "latin")
    with pytest.raises(InputError, match="none"):
        prompts.read(layout, tmp_path / "none")
