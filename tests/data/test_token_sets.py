import concurrent.futures
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from dimo_jax.common.errors import InputError
from dimo_jax.data import token_files, token_sets

LENGTHS = (5, 1, 4)
NUM, VIEWS, LENGTH, CODES = sum(LENGTHS), 2, 3, 1000
CLASSES = ("a cat", "Hündin", "n01440764")


def facts(condition="label", **changes):
    found = token_sets.Facts(
        tokenizer={"config": {"name": "patches"}, "hash": "0" * 64},
        codebook_size=CODES,
        views=VIEWS,
        length=LENGTH,
        image_size=32,
        condition=condition,
        class_names=CLASSES if condition == "label" else (),
        settings={"crop": "center"},
        source="photos/",
    )
    return dataclasses.replace(found, **changes)


def examples(codes=CODES):
    tokens = np.random.default_rng(0).integers(0, codes, (NUM, VIEWS, LENGTH)).astype(np.int32)
    tokens[0, 0, 0], tokens[1, 0, 0] = 0, codes - 1
    labels = [i % len(CLASSES) for i in range(NUM)]
    texts = [f"number {i}, \u2713" for i in range(NUM)]
    return tokens, labels, texts, [f"{i}/b\udcff.png" for i in range(NUM)]


def write(folder, of, skipped=()):
    """A set of LENGTHS in the folder; its shards lie beside it."""
    tokens, labels, texts, names = examples(of.codebook_size)
    start, shards = 0, []
    for length in LENGTHS:
        rows = slice(start, start + length)
        given = {"label": {"labels": labels[rows]}, "text": {"texts": texts[rows]}, "none": {}}
        data = token_files.shard(of, tokens[rows], names[rows], **given[of.condition])
        file = folder.parent / f"{folder.name}.{start}"
        file.write_bytes(data)
        shards.append((length, file))
        start += length
    return token_files.write(folder, of, shards, skipped)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "set", facts(), [("broken.png", "it is cut off")])


@pytest.mark.parametrize("condition", token_sets.CONDITIONS)
def test_what_is_written_is_read_in_any_order(tmp_path, condition):
    tokens, labels, texts, names = examples()
    found = token_sets.open_set(write(tmp_path / "set", facts(condition)))
    assert (found.num, found.views, found.length) == (NUM, VIEWS, LENGTH)
    assert (found.codebook_size, found.condition) == (CODES, condition)
    assert found.class_names == (CLASSES if condition == "label" else ())
    assert found.tokenizer_hash == "0" * 64
    indices = np.array([9, 0, 5, 4, 4, 6, 1])
    views = np.array([0, 1, 0, 1, 0, 1, 1])
    read, numbers = found.at(indices, views)
    assert read.dtype == numbers.dtype == np.int32
    np.testing.assert_array_equal(read, [tokens[i, v] for i, v in zip(indices, views, strict=True)])
    wanted = {"label": [labels[i] for i in indices], "text": indices, "none": [0] * 7}
    np.testing.assert_array_equal(numbers, wanted[condition])
    if condition == "text":
        assert found.texts() == texts and found.texts([7, 2]) == [texts[7], texts[2]]
    else:
        with pytest.raises(InputError, match="no captions"):
            found.texts()
    assert found.names([3]) == [r"3/b\udcff.png"] and names[3] != found.names([3])[0]
    with pytest.raises(IndexError):
        found.at(np.array([NUM]), np.array([0]))
    assert found.at(np.array([], int), np.array([], int))[0].shape == (0, LENGTH)


def test_many_threads_read_the_same(folder):
    found, tokens = token_sets.open_set(folder), examples()[0]

    def read(seed):
        indices = np.random.default_rng(seed).integers(0, NUM, 64)
        np.testing.assert_array_equal(
            found.at(indices, indices % 2)[0], tokens[indices, indices % 2]
        )

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(64)))


STRANGER = """
import importlib.machinery, json, sys
find = importlib.machinery.PathFinder.find_spec
def find_spec(cls, name, path=None, target=None):
    hidden = ("tensorflow", "dimo_jax")
    return None if name.split(".")[0] in hidden else find(name, path, target)
importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
print(json.dumps([
    [str(x["tokens"].dtype), x["tokens"].tolist(), int(x.get("label", -1)),
     x.get("text", b"").decode(), x["name"].decode()]
    for x in builder.as_data_source("train")
]))
label = dict(builder.info.features.items()).get("label")
print(json.dumps(label and label.names))
print(builder.info.splits["train"].num_examples)
"""


@pytest.mark.parametrize("condition, codes", [("label", 256), ("text", 65536), ("none", 65537)])
def test_tensorflow_datasets_reads_it_without_this_package(tmp_path, condition, codes):
    folder = write(tmp_path / "set", facts(condition, codebook_size=codes))
    found = subprocess.run(
        [sys.executable, "-c", STRANGER, folder], cwd=tmp_path, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    read, classes, num = map(json.loads, found.stdout.splitlines())
    tokens, labels, texts, _ = examples(codes)
    dtype = {256: "uint8", 65536: "uint16", 65537: "int32"}[codes]
    assert read == [
        [dtype, tokens[i].tolist(), labels[i] if condition == "label" else -1,
         texts[i] if condition == "text" else "", f"{i}/b\\udcff.png"]
        for i in range(NUM)
    ]  # fmt: skip
    assert classes == (list(CLASSES) if condition == "label" else None) and num == NUM


def test_the_same_examples_are_the_same_bytes(tmp_path):
    one, two = write(tmp_path / "one", facts()), write(tmp_path / "two", facts())
    files = sorted(x.name for x in one.iterdir())
    assert len(files) == len(LENGTHS) + 4
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)


def edit(place, change):
    content = json.loads(place.read_text())
    change(content)
    place.write_text(json.dumps(content))


def in_tokens_json(change):
    return lambda folder: edit(folder / "tokens.json", change)


def in_info(change):
    return lambda folder: edit(folder / "dataset_info.json", lambda x: change(x["splits"][0]))


def shard(folder, index):
    return folder / f"tokens-train.array_record-{index:05d}-of-00003"


def cut(folder):
    data = shard(folder, 1).read_bytes()
    shard(folder, 1).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (lambda folder: (folder / "tokens.json").unlink(), "has no tokens.json"),
        (lambda folder: (folder / "tokens.json").write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / "tokens.json").write_text("{"), "not JSON"),
        (in_tokens_json(lambda x: x.update(format=2)), "format 2, expected 1"),
        (in_tokens_json(lambda x: x.pop("views")), "missing fields: views"),
        (in_tokens_json(lambda x: x.update(views=0)), "views is 0; it must be a whole number"),
        (in_tokens_json(lambda x: x.update(length=1 << 40)), "length is 1099511627776; it must"),
        (in_tokens_json(lambda x: x.update(codebook_size="8")), "codebook_size is '8'; it must"),
        (in_tokens_json(lambda x: x.update(condition="both")), "it must be one of label, text"),
        (in_tokens_json(lambda x: x.update(condition="none")), "do not agree"),
        (in_tokens_json(lambda x: x.update(tokenizer={"hash": 5})), "tokenizer is"),
        (in_tokens_json(lambda x: x.update(num_examples=11)), "10 examples, and tokens.json"),
        (lambda folder: (folder / "dataset_info.json").unlink(), "there is no file"),
        (in_info(lambda x: x.pop("shardLengths")), "missing or of another type"),
        (in_info(lambda x: x.update(shardLengths=["10"])), "there is no .*00000-of-00001"),
        (in_info(lambda x: x.update(shardLengths=["5", "2", "3"])), "has 1 examples and"),
        (lambda folder: shard(folder, 2).unlink(), "there is no .*00002-of-00003; copy"),
        (cut, "00001-of-00003 has 0 examples .* cut off"),
        (lambda folder: shard(folder, 0).write_bytes(b""), "00000-of-00003 has 0 examples"),
    ],
)
def test_what_is_no_complete_set_is_refused_in_a_sentence(folder, damage, complaint):
    damage(folder)
    with pytest.raises(InputError, match=complaint) as raised:
        token_sets.open_set(folder)
    assert "\n" not in str(raised.value)


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not there; give a folder of tokens"):
        token_sets.open_set(tmp_path / "nothing")


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"codebook_size": 999}, "example 1 of .* has the token 999, expected 0 to 998"),
        ({"class_names": CLASSES[:2]}, "example 2 of .* has the label 2, expected 0 to 1"),
        ({"codebook_size": 200}, "00000-of-00003 is damaged"),  # bytes, not pairs of them
        ({"length": 4}, "00000-of-00003 is damaged"),
    ],
)
def test_what_an_example_cannot_hold_is_refused_when_it_is_read(folder, change, complaint):
    edit(folder / "tokens.json", lambda x: x.update(change))
    found = token_sets.open_set(folder)
    with pytest.raises(InputError, match=complaint):
        found.at(np.arange(NUM), np.zeros(NUM, int))


def test_a_flipped_bit_is_found(folder):
    content = bytearray(shard(folder, 0).read_bytes())
    tokens = examples()[0][2].astype(np.uint16).tobytes()
    content[content.index(tokens)] ^= 1
    shard(folder, 0).write_bytes(content)
    found = token_sets.open_set(folder)
    with pytest.raises(InputError, match="00000-of-00003 is damaged"):
        found.at(np.arange(NUM), np.zeros(NUM, int))


def test_only_a_tokens_folder_is_replaced(folder, tmp_path):
    assert token_files.foreign(folder) is None
    write(folder, facts("none"))
    assert token_sets.open_set(folder).condition == "none"
    assert not (folder / "label.labels.txt").exists()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds notes.txt, which writing would delete"):
        write(folder, facts())
    other = tmp_path / "other"
    other.mkdir()
    (other / "features.json").write_text("{}")
    with pytest.raises(InputError, match=r"features.json and no tokens.json"):
        write(other, facts())


@pytest.mark.parametrize(
    "names", [("a", ""), ("a", " b"), ("a\nb", "c"), ("a", "b", "a"), ("a\x1b[2J",)]
)
def test_names_of_classes_that_lines_cannot_hold_are_refused(names):
    token_files.check_class_names(CLASSES)
    with pytest.raises(InputError, match="a class is called"):
        token_files.check_class_names(names)


def test_wrong_examples_are_not_written():
    tokens, labels, texts, names = examples()
    with pytest.raises(ValueError, match="expected"):
        token_files.shard(facts(), tokens[:, :1], names, labels=labels)
    with pytest.raises(ValueError, match="too few conditions"):
        token_files.shard(facts(), tokens, names, texts=texts)
    with pytest.raises(ValueError, match="outside 0 .. 9"):
        token_files.shard(facts(codebook_size=10), tokens, names, labels=labels)
