"""The vocabulary of a data set's texts: merges by a loop in Python, ids by transformers."""

from tests.helpers import torch_peers  # noqa: F401

# isort: split
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from transformers import CLIPTokenizer

from dimo_jax.common.errors import InputError
from dimo_jax.conditions import clip_tokenizer, trained_vocabulary, transformers_tokenizer
from tests.helpers import ROOT

TEXTS = [
    "red heart", "green heart", "heart on fire", "red apple", "green apple", "pineapple",
    "person walking: dark skin tone", "person running: dark skin tone", "Flag: Réunion", "key: #",
]  # fmt: skip
VOCABULARY = 514 + 25


def test_every_merge_is_the_most_frequent_pair():
    texts = [text for text in TEXTS if text.isascii()]  # whose bytes are written as they are
    words = Counter()
    for word in " ".join(texts).lower().replace(":", " : ").split():
        words[(*word[:-1], f"{word[-1]}</w>")] += 1
    merges = trained_vocabulary.train(texts, VOCABULARY)
    assert len(merges) == 25
    for merge in merges:
        pairs = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        pair = tuple(merge.split(" "))
        assert pairs[pair] == max(pairs.values()) > 0, merge
        words = Counter({merged(word, pair): count for word, count in words.items()})


def merged(word, pair):
    out = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return tuple(out)


def test_ids_are_those_of_transformers_on_the_same_merges(tmp_path):
    merges = trained_vocabulary.train(TEXTS, VOCABULARY)
    data = transformers_tokenizer.from_merges(merges, 16)
    for file, content in transformers_tokenizer.to_folder(data, 16).items():
        (tmp_path / file).write_bytes(content)
    peer = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    texts = [*TEXTS, "a red heart", "A PINEAPPLE on fire!", "黄色い犬", "", "red " * 20]
    expected = peer(texts, padding="max_length", max_length=16, truncation=True).input_ids
    tokenizer = clip_tokenizer.transformers(data, 16)
    np.testing.assert_array_equal(tokenizer(texts), np.asarray(expected))
    assert tokenizer.num_ids == VOCABULARY == tokenizer.end + 1
    # Frequent words are one piece each.
    assert [len(x) for x in tokenizer.ids(["red heart", "skin tone"])] == [2, 2]


def test_every_process_makes_the_same_one():
    code = (
        "from dimo_jax.conditions import trained_vocabulary as made\n"
        f"print(hash(tuple(made.train({TEXTS!r}, {VOCABULARY}))))"
    )
    environment = {"PYTHONHASHSEED": "0", "JAX_PLATFORMS": "cpu"}
    run = [sys.executable, "-c", code]
    found = {subprocess.check_output(run, cwd=ROOT, env=environment, text=True) for _ in range(4)}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("vocabulary", "complaint"),
    [(513, "513 ids has no room.*at least 514"), (5000, r"give \d+ merges.*give at most \d+$")],
)
def test_a_vocabulary_that_cannot_be_is_refused(vocabulary, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        trained_vocabulary.train(TEXTS, vocabulary)
    assert "\n" not in str(error.value)
    if vocabulary == 5000:  # the number named is one that works
        largest = int(str(error.value).rsplit(" ", 1)[1])
        assert len(trained_vocabulary.train(TEXTS, largest)) == largest - 514
        with pytest.raises(InputError):
            trained_vocabulary.train(TEXTS, largest + 1)
