"""The tokenizer of a Hugging Face folder: transformers' CLIPTokenizer, for every kind of text."""

from tests.helpers import torch_peers  # noqa: F401

# isort: split


# isort: split
import json

import numpy as np
import pytest
from transformers import CLIPTokenizer

from dimo_jax.common.errors import InputError
from dimo_jax.conditions import clip_tokenizer, clip_vocabulary, transformers_tokenizer
from tests.helpers.unicode_prompts import prompts

pytestmark = pytest.mark.xdist_group("transformers_tokenizer")

PROMPTS = prompts()
START, END = "<|startoftext|>", "<|endoftext|>"
USUAL = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
# As Meissonic's folder has it.
MEISSONIC = {
    "add_prefix_space": False,
    "added_tokens_decoder": {
        "0": {"content": "!", **USUAL, "special": True},
        "49406": {"content": START, **USUAL, "normalized": True, "special": True},
        "49407": {"content": END, **USUAL, "special": True},
    },
    **{"bos_token": START, "eos_token": END, "pad_token": "!", "unk_token": END},
    **{"do_lower_case": True, "errors": "replace", "model_max_length": 77},
    "tokenizer_class": "CLIPTokenizer",
}
TYPED = {"__type": "AddedToken", "content": START, **USUAL, "normalized": True}
# Files beside vocab.json and merges.txt.
FOLDERS = {
    "meissonic": {"tokenizer_config.json": MEISSONIC},
    "a vocabulary alone": {},
    "openai": {
        "tokenizer_config.json": {"bos_token": TYPED, "unk_token": END, "errors": "replace"},
        "special_tokens_map.json": {
            "bos_token": {"content": START, **USUAL, "normalized": True},
            "eos_token": {"content": END, **USUAL, "normalized": True},
            "pad_token": "!",
            "additional_special_tokens": ["photo</w>"],
        },
    },
    # Which is not read beside a decoder of added tokens.
    "both": {
        "tokenizer_config.json": MEISSONIC,
        "special_tokens_map.json": {"pad_token": END},
    },
    "with tokens of its own": {
        "tokenizer_config.json": {"pad_token": "?", "image_token": "#"},
        "added_tokens.json": {"Å": 49405, "photo": 1234},
    },
    "with flags": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "0": {"content": "!", **USUAL, "lstrip": True, "rstrip": True, "special": True},
                "1": {"content": "É", **USUAL, "normalized": True, "special": False},
                "2": {"content": "x", **USUAL, "single_word": True, "special": False},
            },
            "pad_token": "!",
        }
    },
}


@pytest.fixture(scope="module")
def merges(tmp_path_factory):
    """The real vocabulary, which an installed open_clip_torch ships."""
    path = clip_vocabulary.find(tmp_path_factory.mktemp("empty") / "weights")
    return clip_vocabulary.read(path, 49408)


@pytest.fixture(scope="module")
def vocabulary(merges):
    """With the pieces that the folders' own tokens are."""
    pieces = [*clip_vocabulary.tokens(merges), START, END]
    return {piece: i for i, piece in enumerate(pieces)}


@pytest.fixture
def write(tmp_path, merges, vocabulary):
    def write(files, whole=False):
        contents = {"vocab.json": vocabulary, **files}
        for name, content in contents.items():
            (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        (tmp_path / "merges.txt").write_bytes(clip_vocabulary.to_text(merges))
        if whole:
            CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True).save_pretrained(tmp_path)
            for name in ("vocab.json", "merges.txt"):
                (tmp_path / name).unlink()
        return tmp_path

    return write


def expected(folder, texts):
    peer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    rows = peer(texts, padding="max_length", max_length=77, truncation=True).input_ids
    return np.asarray(rows)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["files", "tokenizer.json"])
@pytest.mark.parametrize("name", FOLDERS)
def test_ids_are_transformers(name, whole, merges, write, tmp_path_factory):
    folder = write(FOLDERS[name], whole)
    larger = 49408 + 3 * (name in ("with tokens of its own", "with flags"))
    data = transformers_tokenizer.read(folder, merges, 77, larger)
    tokenizer = clip_tokenizer.transformers(data)
    rows = tokenizer(PROMPTS)
    assert len(PROMPTS) > 2000
    np.testing.assert_array_equal(rows, expected(folder, PROMPTS))
    # The folder that is written of it.
    back = tmp_path_factory.mktemp("back")
    for file, content in transformers_tokenizer.to_folder(data, 77).items():
        (back / file).write_bytes(content)
    np.testing.assert_array_equal(rows, expected(back, PROMPTS))
    assert transformers_tokenizer.merges_of(data) == merges


def test_the_padding_is_a_word_of_meissonics_prompts(merges, write):
    data = transformers_tokenizer.read(write(FOLDERS["meissonic"]), merges, 77, 49408)
    tokenizer = clip_tokenizer.transformers(data)
    assert tokenizer.ids(["hello!"]) == [[3306, 0]] and tokenizer.pad == 0
    assert clip_tokenizer.open_clip(merges).ids(["hello!"]) == [[3306, 256]]
    # Half a pair of UTF-16, which JSON can spell and transformers refuses.
    assert tokenizer.ids(["x\ud800y"]) == tokenizer.ids(["x\ufffdy"])
    # Of a vocabulary alone the same is made.
    made = clip_tokenizer.transformers(transformers_tokenizer.from_merges(merges, 77))
    np.testing.assert_array_equal(made(PROMPTS), tokenizer(PROMPTS))


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"tokenizer_config.json": {"tokenizer_class": "T5Tokenizer"}}, "is of a T5Tokenizer"),
        ({"tokenizer_config.json": {"padding_side": "left"}}, "has padding_side left"),
        (
            {"tokenizer_config.json": {"pad_token": "<pad>"}},
            "ids up to 49408, the text tower 49408",
        ),
        ({"tokenizer_config.json": {"added_tokens_decoder": [1]}}, "no tokenizer of CLIP's kind"),
        ({"added_tokens.json": {"x": "y"}}, "no tokenizer of CLIP's kind"),
        ({"special_tokens_map.json": ["x"]}, "is not a JSON object but a list"),
    ],
)
def test_what_is_not_clips_is_one_sentence(files, complaint, merges, write):
    with pytest.raises(InputError, match=complaint) as error:
        transformers_tokenizer.read(write(files), merges, 77, 49408)
    assert "\n" not in str(error.value)


def test_a_frame_of_other_tokens_is_refused(merges, write):
    folder = write(FOLDERS["meissonic"], whole=True)
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["post_processor"]["cls"] = [END, 49407]
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(InputError, match=r"RobertaProcessing with \[49407, 49407\], expected"):
        transformers_tokenizer.read(folder, merges, 77, 49408)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda found: found.clear(), "no tokenizer of CLIP's kind"),
        (lambda found: found["model"].update(merges=[["x"]]), "no tokenizer of CLIP's kind"),
        (lambda found: found["padding"].update(pad_id=99_999), "another 99999 than"),
        (lambda found: found["normalizer"]["normalizers"].pop(0), "another normalizer than"),
        (
            lambda found: found["normalizer"]["normalizers"][1].update(pattern={"Regex": "(a+)+$"}),
            "another normalizer than",
        ),
        (lambda found: found["added_tokens"][0].update(id=7), "another ! than"),
    ],
)
def test_a_bundles_file_is_not_believed(change, complaint, merges):
    found = json.loads(transformers_tokenizer.from_merges(merges, 77))
    change(found)
    with pytest.raises(InputError, match=complaint) as error:
        clip_tokenizer.transformers(json.dumps(found).encode())
    assert "\n" not in str(error.value)
    for data in (b"", b"[]", b"\xff", b"{"):
        with pytest.raises(InputError):
            clip_tokenizer.transformers(data)
