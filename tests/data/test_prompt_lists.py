"""Lists of prompts from every kind of file, well-formed and not."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import tensorflow_datasets as tfds
from pyarrow import parquet

from dimo_jax.common.errors import InputError
from dimo_jax.data import prompts

TEXTS = ["a red ball", 'a "blue"/cube', "黄色い犬 / ein Hund"]


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_a_text_file_with_blank_and_repeated_lines(tmp_path):
    where = write(
        tmp_path / "list.txt",
        f"\ufeff{TEXTS[0]}",
        "",
        f"  {TEXTS[1]}\r",
        TEXTS[0],
        " \t ",
        TEXTS[2],
    )
    found = prompts.read(where)
    assert list(found.texts) == TEXTS
    assert (found.found, found.blank, found.repeated) == (6, 2, 1)
    assert found.describe() == f"3 prompts of {where} (6 read, 2 blank, 1 repeated)"


def test_every_kind_of_file_gives_the_same_list(tmp_path):
    expected = prompts.unique("", TEXTS)
    assert expected.describe() == "3 prompts of "
    quoted = [f'"{x.replace(chr(34), chr(34) * 2)}"' for x in TEXTS]
    places = [
        write(tmp_path / "a.txt", *TEXTS),
        write(tmp_path / "a.jsonl", *(json.dumps({"id": 1, "caption": x}) for x in TEXTS)),
        write(tmp_path / "b.jsonl", *(json.dumps(x) for x in TEXTS)),
        str(tmp_path / "a.parquet"),
        write(tmp_path / "a.json", json.dumps(TEXTS)),
        write(tmp_path / "b.json", json.dumps([{"Caption": x} for x in TEXTS])),
        write(tmp_path / "a.CSV", "id,Text", *(f"1,{x}" for x in quoted)),
        # As PartiPrompts.
        write(tmp_path / "a.tsv", "Prompt\tCategory", *(f"{x}\tAnimals" for x in quoted)),
    ]
    table = pyarrow.table({"URL": ["x"] * 3, "TEXT": TEXTS})
    parquet.write_table(table, tmp_path / "a.parquet")
    for where in places:
        found = prompts.read(where)
        assert list(found.texts) == TEXTS, where
        assert found.sha256 == expected.sha256, where
    assert prompts.unique("", TEXTS[::-1]).sha256 != expected.sha256
    # ["ab"] and ["a", "b"] are not the same list.
    assert prompts.unique("", ["ab"]).sha256 != prompts.unique("", ["a", "b"]).sha256


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    parquet.write_table(pyarrow.table({"text": [None, TEXTS[1]]}), tmp_path / "2.parquet")
    write(tmp_path / "1.txt", TEXTS[0])
    write(tmp_path / "README.md", "no prompt")
    write(tmp_path / "3.jsonl", json.dumps({"text": TEXTS[2]}))
    found = prompts.read(str(tmp_path))
    assert list(found.texts) == TEXTS and found.blank == 1


def test_a_field_inside_another(tmp_path):
    lines = [{"captions": [{"text": TEXTS[0]}, {"text": TEXTS[1]}]}, {"captions": []}]
    where = write(tmp_path / "a.jsonl", *map(json.dumps, lines))
    assert list(prompts.read(where, "captions/text").texts) == TEXTS[:2]
    table = pyarrow.table({"captions": [["x", "y"], None]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert prompts.read(where, "captions/text").describe().endswith(", field captions/text")
    found = prompts.read(str(tmp_path / "a.parquet"), "captions")
    assert list(found.texts) == ["x", "y"] and found.blank == 1


class Captions(tfds.core.GeneratorBasedBuilder):
    """Three captions, of which two are of one picture."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent  # a test module is in no package, where it would look

    def _info(self):
        text = tfds.features.Text()
        features = {"captions": tfds.features.Sequence({"text": text}), "prompt": text}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"captions": [{"text": TEXTS[0]}, {"text": TEXTS[2]}], "prompt": TEXTS[1]}
        yield 1, {"captions": [{"text": TEXTS[1]}], "prompt": ""}


def test_a_data_set(tmp_path):
    builder = Captions(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    found = prompts.read("tfds:captions:train", data_dir=tmp_path)
    assert list(found.texts) == [TEXTS[1]] and found.blank == 1
    found = prompts.read("tfds:captions:train", "captions/text", tmp_path)
    assert sorted(found.texts) == sorted(TEXTS)
    with pytest.raises(InputError, match="but no title; name the text's field with --config"):
        prompts.read("tfds:captions:train", "title", tmp_path)
    with pytest.raises(InputError, match="tensorflow-datasets cannot open nothing_such train"):
        prompts.read("tfds:nothing_such:train", data_dir=tmp_path)
    with pytest.raises(InputError, match="is not tfds:NAME:SPLIT"):
        prompts.read("tfds:captions", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "field", "complaint"),
    [
        ("a.txt", b"fine\nbad \xff byte\n", "", "line 2, is not UTF-8 .byte 0xff at 4.; save it"),
        ("a.txt", b" \n\n", "", "has no prompts; give a list with at least one"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "", "line 2, is not JSON"),
        (
            "a.jsonl",
            b'{"title": "x", "id": 3}\n',
            "",
            "has title, id, but no prompt, caption or text",
        ),
        ("a.jsonl", b'{"text": "x"}\n', "title", "line 1, has text, but no title; name the"),
        ("a.jsonl", b'{"text": 3}\n', "", "line 1, has '3' where the text was expected"),
        ("a.jsonl", b'{"text": {"a": "b"}}\n', "", "which is no text"),
        ("a.jsonl", b"[1]\n", "", "is neither an object nor a text"),
        ("a.parquet", b"PAR1 cut off", "", "is damaged or no parquet file"),
        ("a.doc", b"x\n", "", "is no list of prompts: its name was expected to end in .txt, .j"),
        ("a", b"x\n", "", "is no list of prompts: its name was expected to end in .txt, .jsonl"),
        ("a.csv", b"id,a cat\n1,x\n", "", "line 2, has id, a cat, but no prompt, caption or text"),
        ("a.csv", b"id,prompt\n1,a cat, a dog\n", "", "line 2, has more cells than the first"),
        ("a.csv", b'id,prompt\n1,"x" y\n', "", "after line 1, is no CSV"),
        ("a.tsv", b'id\tprompt\n1\t"x', "", "after line 1, is no TSV: unexpected end"),
        ("a.csv", b"id,prompt\n1,\xff\n", "", "line 2, is not UTF-8"),
        ("a.json", b'{"images": []}', "", "has images, but no prompt, caption or text"),
        ("a.json", b"[[1]]", "", "record 0, is neither an object nor a text"),
        ("a.txt", b'\n{"prompt": "x"}\n', "", "holds JSON, not a prompt .* rename it to a.jsonl"),
        ("a.txt", b'["x", "y"]', "", "holds JSON, not a prompt on each line; rename it to a.json"),
        ("a.txt", b'[\n"x",\n"y"]', "", "holds JSON, not a prompt on each line; rename it to a.j"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\n", "", "is a git-lfs pointer"),
        ("a.jsonl", b"<!DOCTYPE html>\n", "", "is a web page"),
        ("a.txt", b"x" * (1 << 24) + b"x", "", "line 1, has more than 16,777,216 bytes"),
        ("a.jsonl", b'{"\x1b[31m": 1}\n', "", "is not JSON"),
        ("a.jsonl", rb'{"\u001b[31m": 1}' + b"\n", "", r"has \\x1b\[31m, but no prompt"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, data, field, complaint):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=complaint) as error:
        prompts.read(str(tmp_path / name), field)
    assert str(tmp_path / name) in str(error.value) and str(error.value).isprintable()


def test_a_place_that_is_none(tmp_path):
    with pytest.raises(InputError, match="there is no .*nowhere.txt; give a list of prompts"):
        prompts.read(str(tmp_path / "nowhere.txt"))
    with pytest.raises(InputError, match="is no list of prompts"):
        prompts.read(str(tmp_path))
    with pytest.raises(InputError, match="is not on a disk"):
        prompts.read("gs://bucket/list.txt")


def test_a_truncated_parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [str(x) for x in np.random.default_rng(0).integers(1 << 60, size=5000)]
    parquet.write_table(pyarrow.table({"text": texts}), path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="is damaged or no parquet file"):
        prompts.read(str(path))
