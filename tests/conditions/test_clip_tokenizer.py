"""The ids of texts against those of open_clip and of transformers, and vocabularies from files."""

import torch_peers  # noqa: F401

# isort: split
import gzip
import json

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTokenizer

from dimo_jax.conditions import clip_vocabulary
from dimo_jax.conditions.clip_tokenizer import ClipTokenizer
from dimo_jax.errors import InputError

TEXTS = [
    "",
    "a photo of a cat",
    "A PHOTO of   the\tcat's 12 dogs!!! (in 1999)\n",
    "l'été à l'île, naïve café — 東京タワー привет",
    "don't we'll they've I'm he'd you're 'quoted' \"twice\"",
    "x/y\\z ~ #tag @name <b> 100% $5.00 50€ …",
    "an astronaut 🚀 riding a 🐴 on the moon 👩‍👩‍👧",
    "supercalifragilisticexpialidocious " * 30,
    "<|startoftext|> is no command <end_of_text",
    "Zoë ﬁnds ½ ①",
]
# What ftfy and HTML's escapes change, which Hugging Face leaves as it is.
UNCLEAN = ["it’s “curled” &amp;amp; &lt;br&gt;", "schÃ¶n", "ｆｕｌｌ　ｗｉｄｔｈ"]


@pytest.fixture(scope="module")
def merges(tmp_path_factory):
    """The real vocabulary, which an installed open_clip_torch ships."""
    path = clip_vocabulary.find(tmp_path_factory.mktemp("empty") / "weights")
    assert path.name == clip_vocabulary.OPENAI_FILE
    return clip_vocabulary.read(path, 49408)


def test_ids_are_open_clips(merges):
    tokenizer, peer = ClipTokenizer(merges), SimpleTokenizer()
    assert (tokenizer.start, tokenizer.end) == (49406, 49407)
    rows = tokenizer([*TEXTS, *UNCLEAN])
    assert rows.dtype == np.int32 and rows.shape == (len(TEXTS) + len(UNCLEAN), 77)
    np.testing.assert_array_equal(rows, peer([*TEXTS, *UNCLEAN]).numpy())
    # The long one is cut, and still ends.
    assert rows[7, -1] == 49407 and 0 not in rows[7] and list(rows[0, :3]) == [49406, 49407, 0]


def test_ids_are_transformers(merges, tmp_path):
    (tmp_path / "merges.txt").write_bytes(clip_vocabulary.to_text(merges))
    pieces = [*clip_vocabulary.tokens(merges), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({x: i for i, x in enumerate(pieces)}))
    peer = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    texts = [*TEXTS[:8], TEXTS[9], *UNCLEAN]
    expected = peer(texts, padding="max_length", max_length=77, truncation=True).input_ids
    tokenizer = ClipTokenizer(merges, cleaning="huggingface")
    np.testing.assert_array_equal(tokenizer(texts, pad_id=peer.pad_token_id), expected)
    assert (ClipTokenizer(merges)(UNCLEAN) != tokenizer(UNCLEAN)).any(axis=1).all()
    assert clip_vocabulary.read(tmp_path, 49408) == merges


def test_a_prefix_stands_in_front(merges):
    """As the score's code inserts its three ids: behind the start, then cut to 77."""
    tokenizer = ClipTokenizer(merges)
    found = tokenizer(TEXTS, prefix="A photo depicts")
    for row, plain in zip(found, tokenizer(TEXTS), strict=True):
        expected = np.concatenate([plain[:1], [320, 1125, 29340], plain[1:]])[:77]
        expected[-1] = 49407 if expected[-1] else 0
        np.testing.assert_array_equal(row, expected)


# "lo", "low</w>" and "er</w>" from bytes.
SMALL = ["l o", "lo w</w>", "e r</w>"]


def test_a_small_vocabulary_by_hand():
    tokenizer = ClipTokenizer(SMALL, context=8)
    lo, low, er, start, end = 512, 513, 514, 515, 516
    # Letters have the ids of their places among the printable bytes: "w" is the 87th.
    w = ord("w") - 33
    rows = tokenizer(["LOW  lower", "lo"])
    assert rows.tolist() == [
        [start, low, lo, w, er, end, 0, 0],
        [start, ord("l") - 33, 256 + ord("o") - 33, end, 0, 0, 0, 0],
    ]
    assert tokenizer(["low " * 9], pad_id=7).tolist() == [[start, *[low] * 6, end]]
    assert tokenizer(["low"], pad_id=7)[0].tolist() == [start, low, end, 7, 7, 7, 7, 7]


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
        ({"merges.txt": b"\xff\xfe"}, "is no vocabulary of CLIP's kind"),
        ({"tokenizer.json": b'{"model": {}}'}, "is no vocabulary of CLIP's kind: KeyError"),
        ({"bpe_simple_vocab_16e6.txt.gz": b"\x1f\x8b no"}, "is no vocabulary of CLIP's kind"),
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
        ClipTokenizer(["qu ick", "l o"])
    with pytest.raises(InputError, match="no cleaning 'ascii'; there are open_clip, huggingface"):
        ClipTokenizer(SMALL, cleaning="ascii")
