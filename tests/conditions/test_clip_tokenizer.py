"""The ids of texts against those of open_clip, and vocabularies from files."""

from tests.helpers import torch_peers  # noqa: F401

# isort: split


# isort: split
import gzip
import json

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer

from dimo_jax.common.errors import InputError
from dimo_jax.conditions import clip_tokenizer, clip_vocabulary
from tests.helpers import unicode_prompts

TEXTS = [
    "",
    "A PHOTO of   the\tcat's 12 dogs!!! (in 1999)\n",
    "don't we'll they've I'm he'd you're 'quoted' \"twice\"",
    "supercalifragilisticexpialidocious " * 30,
]


@pytest.fixture(scope="module")
def merges(tmp_path_factory):
    """The real vocabulary, which an installed open_clip_torch ships."""
    path = clip_vocabulary.find(tmp_path_factory.mktemp("empty") / "weights")
    assert path.name == clip_vocabulary.OPENAI_FILE
    return clip_vocabulary.read(path, 49408)


def test_ids_are_open_clips(merges):
    tokenizer, peer = clip_tokenizer.open_clip(merges), SimpleTokenizer()
    assert (tokenizer.start, tokenizer.end, tokenizer.pad) == (49406, 49407, 0)
    texts = unicode_prompts.prompts()
    rows = tokenizer(texts)
    assert rows.dtype == np.int32 and rows.shape == (len(texts), 77) and len(texts) > 2000
    np.testing.assert_array_equal(rows, peer(texts).numpy())


def test_what_is_cut_is_counted(merges):
    tokenizer = clip_tokenizer.open_clip(merges)
    fits, cut = "cat " * 75, "cat " * 76
    assert tokenizer.describe_cut([fits, "", fits]) is None
    assert tokenizer.describe_cut([fits, cut, "\x1b[31m" + cut]) == (
        f"2 of 3 prompts are longer than 77 tokens and were cut: first number 2, {cut[:60]!r}..."
    )
    found = tokenizer.describe_cut(["\x1b[31m" + cut])
    assert found.startswith("1 of 1 prompts is longer than 77 tokens and was cut: first number 1, ")
    assert "\x1b" not in found and r"\x1b[31mcat" in found
    # The words in front take their room too.
    assert tokenizer.describe_cut([fits], "A photo depicts")
    assert tokenizer.describe_cut(["cat " * 72], "A photo depicts") is None
    assert tokenizer(["cat " * 76])[0].tolist() == tokenizer([fits])[0].tolist()


def test_a_prefix_stands_in_front(merges):
    """As the score's code inserts its three ids: behind the start, then cut to 77."""
    tokenizer = clip_tokenizer.open_clip(merges)
    found = tokenizer(TEXTS, prefix="A photo depicts")
    for row, plain in zip(found, tokenizer(TEXTS), strict=True):
        expected = np.concatenate([plain[:1], [320, 1125, 29340], plain[1:]])[:77]
        expected[-1] = 49407 if expected[-1] else 0
        np.testing.assert_array_equal(row, expected)


# "lo", "low</w>" and "er</w>" from bytes.
SMALL = ["l o", "lo w</w>", "e r</w>"]


def test_a_small_vocabulary_by_hand():
    tokenizer = clip_tokenizer.open_clip(SMALL, context=8)
    lo, low, er, start, end = 512, 513, 514, 515, 516
    # Letters have the ids of their places among the printable bytes: "w" is the 87th.
    w = ord("w") - 33
    rows = tokenizer(["LOW  lower", "lo"])
    assert rows.tolist() == [
        [start, low, lo, w, er, end, 0, 0],
        [start, ord("l") - 33, 256 + ord("o") - 33, end, 0, 0, 0, 0],
    ]
    assert tokenizer(["low " * 9]).tolist() == [[start, *[low] * 6, end]]


@pytest.mark.parametrize("name", ["merges.txt", "tokenizer.json", "bpe_simple_vocab_16e6.txt.gz"])
def test_all_files_give_the_same_merges(name, tmp_path):
    text = clip_vocabulary.to_text(SMALL)
    assert text == b"#version: 0.2\nl o\nlo w</w>\ne r</w>\n"
    assert clip_vocabulary.from_text(text) == SMALL
    assert clip_vocabulary.from_text(clip_vocabulary.to_text([])) == []
    content = {
        "merges.txt": text,
        "tokenizer.json": json.dumps({"model": {"merges": [SMALL[0], *SMALL[1:]]}}).encode(),
        # OpenAI's list is longer than what CLIP uses.
        "bpe_simple_vocab_16e6.txt.gz": gzip.compress(
            b'"x.txt#version: 0.2\n' + text[14:] + b"o x"
        ),
    }[name]
    (tmp_path / "weights").mkdir()
    (tmp_path / name).write_bytes(content)
    assert clip_vocabulary.read(tmp_path / name, 517) == SMALL
    assert clip_vocabulary.read(tmp_path, 517) == SMALL
    pairs = json.dumps({"model": {"merges": [merge.split(" ") for merge in SMALL]}})
    (tmp_path / "tokenizer.json").write_text(pairs)
    assert clip_vocabulary.read(tmp_path / "tokenizer.json", 517) == SMALL


def test_places_of_a_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_vocabulary, "_PACKAGES", ("no_such_package",))
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    assert clip_vocabulary.find(folder) is None
    beside = tmp_path / "tokenizer" / "merges.txt"
    beside.parent.mkdir()
    beside.write_bytes(clip_vocabulary.to_text(SMALL))
    assert clip_vocabulary.find(folder) == beside
    inside = folder / "tokenizer.json"
    inside.write_text("{}")
    assert clip_vocabulary.find(folder) == inside


@pytest.mark.parametrize(
    "files, complaint",
    [
        ({}, "has no vocabulary; one of merges.txt, tokenizer.json, bpe_simple"),
        ({"merges.txt": b"#version: 0.2\nl o\n"}, "has 1 merges, but .* 517 ids, which are 3"),
        ({"merges.txt": b"#version: 0.2\nl o\nlow\ne r\n"}, "merge 1 is 'low', expected two"),
        ({"merges.txt": b"\xff\xfe"}, "merges.txt is not UTF-8"),
        ({"tokenizer.json": b'{"model": {}}'}, "is no vocabulary of CLIP's kind .no model.merges"),
        ({"bpe_simple_vocab_16e6.txt.gz": b"\x1f\x8b no"}, "is damaged or no gzip file"),
        (
            {"merges.txt": clip_vocabulary.to_text(SMALL), "vocab.json": b'{"!": 1}'},
            "vocab.json has other ids than CLIP's, 515 of them, such as that of '!'",
        ),
    ],
)
def test_other_vocabularies_are_refused(files, complaint, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        clip_vocabulary.read(tmp_path, 517)
    with pytest.raises(InputError, match="there is no file"):
        clip_vocabulary.read(tmp_path / "none.txt", 517)


def test_merges_of_something_else_are_refused():
    with pytest.raises(InputError, match="the merges are no vocabulary of CLIP's kind"):
        clip_tokenizer.open_clip(["qu ick", "l o"])
