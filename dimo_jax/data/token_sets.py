"""Encoded pictures on disk: a data set of tensorflow-datasets with tokens.json beside it.

`tfds.builder_from_directory(folder).as_data_source("train")` reads the folder without this package.
Here its records are read by index, without features.json, which names classes for tfds to import.
Axes: N examples, B of a batch, V views (versions of a picture, differently cut out), L tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  # a library of C++
)
from jaxtyping import Int
from tensorflow_datasets.proto import tf_example_pb2

from dimo_jax.common import fields, files, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.shown import quoted, shown

FORMAT = 1
TOKENS_FILE, INFO_FILE = "tokens.json", "dataset_info.json"
SPLIT = "train"
NAME = "tokens"  # of the data set, to tensorflow-datasets
CONDITIONS = ("label", "text", "none")
Example: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
_OPTIONS = "readahead_buffer_size:0"  # a record at a time, in any order
_BUFFER_BYTES = 1 << 15

_TEXT = fields.Rule("a text", lambda value: isinstance(value, str))
_OBJECT = fields.Rule("an object", lambda value: isinstance(value, dict))
_RULES = {
    "num_examples": fields.whole(1),
    "views": fields.whole(1, 1 << 16),
    "length": fields.whole(1, 1 << 18),
    "codebook_size": fields.whole(1, 1 << 24),
    "image_size": fields.whole(1, 1 << 13),
    "condition": fields.names(*CONDITIONS),
    "class_names": fields.several(_TEXT),
    "tokenizer": fields.Rule(
        "an object with config and hash",
        lambda x: (
            isinstance(x, dict)
            and isinstance(x.get("config"), dict)
            and isinstance(x.get("hash"), str)
        ),
    ),
    "settings": _OBJECT,
    "source": _TEXT,
    "skipped": fields.several(fields.several(_TEXT, exactly=2)),
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is said of a set in tokens.json, beside its size.

    Attributes:
        tokenizer: {"config": ..., "hash": tokenizers.fingerprint}.
        codebook_size: token ids are 0 .. codebook_size - 1.
        views: V.
        length: L.
        image_size: pixels along a side of what was encoded.
        condition: one of CONDITIONS.
        class_names: of the labels 0, 1, ...; empty but for "label".
        settings: everything that decided the tokens, plain values.
        source: what was encoded.
    """

    tokenizer: Mapping[str, Any]
    codebook_size: int
    views: int
    length: int
    image_size: int
    condition: str
    class_names: Sequence[str]
    settings: Mapping[str, Any]
    source: str

    @property
    def dtype(self) -> np.dtype:
        """Return the smallest integer that holds every token id."""
        for kind in (np.uint8, np.uint16):
            if self.codebook_size - 1 <= np.iinfo(kind).max:
                return np.dtype(kind)
        return np.dtype(np.int32)


class TokenSet:
    """The examples of a tokens folder, by index; none is held in memory. See `open_set`.

    Attributes:
        path: the folder.
        facts: what tokens.json says.
        num: N.
        skipped: (name, reason) of the pictures that could not be read.
    """

    def __init__(self, path: Path, facts: Facts, num: int, skipped: Any, lengths: Sequence[int]):
        self.path, self.facts, self.num = path, facts, num
        self.skipped = tuple((name, why) for name, why in skipped)
        self.views, self.length = facts.views, facts.length
        self.codebook_size, self.condition = facts.codebook_size, facts.condition
        self.class_names, self.tokenizer_hash = tuple(facts.class_names), facts.tokenizer["hash"]
        self._ends = np.cumsum(lengths)
        self._shards = [
            _reader(path / shard_name(i, len(lengths)), length) for i, length in enumerate(lengths)
        ]

    def at(
        self, indices: Int[np.ndarray, "B"], views: Int[np.ndarray, "B"]
    ) -> tuple[Int[np.ndarray, "B L"], Int[np.ndarray, "B"]]:
        """Read examples; any number of threads may.

        Args:
            indices: in 0 .. num - 1, in any order.
            views: which view of each.

        Returns:
            int32 tokens [B, L], and the int32 numbers of their conditions [B]: labels; the index of
            the example in `texts`; or 0 where there is no condition.

        Raises:
            InputError: a record is damaged, or holds what it cannot hold.
        """
        tokens = np.empty((len(indices), self.length), np.int32)
        numbers = np.zeros(len(indices), np.int32)
        with_labels = self.condition == "label"

        def take(row: int, feature: Any) -> None:
            every = np.frombuffer(feature["tokens"].bytes_list.value[0], self.facts.dtype)
            tokens[row] = every.reshape(self.views, self.length)[views[row]]
            if with_labels:
                numbers[row] = feature["label"].int64_list.value[0]

        self._read(indices, take)
        if self.condition == "text":
            numbers[:] = indices
        bounds = [("token", tokens, self.codebook_size)]
        bounds += [("label", numbers[:, None], len(self.class_names))] if with_labels else []
        for what, values, most in bounds:
            wrong = (values < 0) | (values >= most)
            if wrong.any():
                row = int(np.argmax(wrong.any(1)))
                raise InputError(
                    f"example {indices[row]} of {self.path} has the {what} "
                    f"{values[row][wrong[row]][0]}, expected 0 to {most - 1}; encode the pictures "
                    "again"
                )
        return tokens, numbers

    def check_tokenizer(self, name: str, digest: str, where: str) -> None:
        """Refuse another tokenizer than the tokens are of.

        Args:
            name: of the tokenizer that is there.
            digest: its fingerprint.
            where: what it is of, in words.

        Raises:
            InputError: it is another one.
        """
        if digest == self.tokenizer_hash:
            return
        theirs = shown(self.facts.tokenizer["config"].get("name"))
        raise InputError(
            f"{self.path} was encoded from {shown(self.facts.source)} by the tokenizer {theirs} of "
            f"hash {self.tokenizer_hash[:12]} (its {TOKENS_FILE}), and {where} is {name} of hash "
            f"{digest[:12]}; give the bundle that it was encoded with, or encode the pictures again"
        )

    def check_sizes(self, num_tokens: int, codebook_size: int, whose: str, advice: str) -> None:
        """Refuse a network or tokenizer of other sizes.

        Args:
            num_tokens: its L.
            codebook_size: its codes.
            whose: what has them, e.g. "the network".
            advice: what to do, a clause.

        Raises:
            InputError: they differ.
        """
        if (self.length, self.codebook_size) != (num_tokens, codebook_size):
            raise InputError(
                f"{self.path} has {self.length} tokens of {self.codebook_size} codes, {whose} "
                f"{num_tokens} of {codebook_size}; {advice}"
            )

    def texts(self, indices: Sequence[int] | None = None) -> list[str]:
        """Return captions: of some examples, or of all in their order.

        Raises:
            InputError: the set has none, or a record is damaged.
        """
        if self.condition != "text":
            raise InputError(f"{self.path} has no captions; encode pictures that have some")
        return self._strings("text", indices)

    def names(self, indices: Sequence[int] | None = None) -> list[str]:
        """Return the names of the pictures, as `texts` does captions."""
        return self._strings("name", indices)

    def _strings(self, key: str, indices: Sequence[int] | None) -> list[str]:
        wanted = np.arange(self.num) if indices is None else np.asarray(indices, np.int64)
        found = [""] * len(wanted)

        def take(row: int, feature: Any) -> None:
            found[row] = feature[key].bytes_list.value[0].decode()

        self._read(wanted, take)
        return found

    def _read(self, indices: Int[np.ndarray, "B"], take: Callable[[int, Any], None]) -> None:
        """Call take(row, its features), shard by shard."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.num:
            raise IndexError(f"examples are 0 to {self.num - 1}")
        shards = np.searchsorted(self._ends, indices, side="right")
        starts = np.concatenate([[0], self._ends])
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            try:
                records = self._shards[shard].read((indices[rows] - starts[shard]).tolist())
                for row, record in zip(rows.tolist(), records, strict=True):
                    take(row, Example.FromString(record).features.feature)
            except Exception as error:  # array_record, protobuf and NumPy have types of their own
                raise damaged(self.path / shard_name(shard, len(self._shards)), error) from error


def open_set(place: str | Path) -> TokenSet:
    """Open a tokens folder, and check that all of it is there.

    Args:
        place: the folder.

    Raises:
        InputError: it is missing, something else, of another format, or not complete.
    """
    if files.is_remote(place):
        raise InputError(
            f"{place} is in an object store, and a training reads examples from a disk in any "
            "order; copy the folder to a disk of each machine, and give its path there"
        )
    folder = files.local(place)
    described = read_description(folder)
    facts = Facts(**{x.name: described[x.name] for x in dataclasses.fields(Facts)})
    lengths = _shard_lengths(folder / INFO_FILE)
    if sum(lengths) != described["num_examples"]:
        raise InputError(
            f"{folder / INFO_FILE} has {sum(lengths)} examples, and {TOKENS_FILE} beside it "
            f"{described['num_examples']}; copy the folder again"
        )
    return TokenSet(folder, facts, described["num_examples"], described["skipped"], lengths)


def read_description(folder: AnyPath) -> dict[str, Any]:
    """Read tokens.json, with exactly the known fields.

    Raises:
        InputError: it is missing or another one.
    """
    place = folder / TOKENS_FILE
    if not place.is_file():
        what = f"has no {TOKENS_FILE}" if folder.is_dir() else "is not there"
        raise InputError(
            f"{folder} {what}; give a folder of tokens, as python -m dimo_jax.encode writes it"
        )
    found = readers.json_object(place)
    if found.get("format") != FORMAT:
        raise InputError(
            f"{place} has the format {quoted(found.get('format'))}, expected {FORMAT}; encode the "
            "pictures again with this version"
        )
    if wrong := sorted({*found} ^ {*_RULES, "format"}):
        raise InputError(f"{place} has unknown or missing fields: {shown(', '.join(wrong))}")
    for name, rule in _RULES.items():
        if not rule.holds(found[name]):
            raise InputError(f"{place}: {name} is {quoted(found[name])}; it must be {rule.words}")
    if bool(found["class_names"]) != (found["condition"] == "label"):
        raise InputError(f"{place}: class_names and condition={found['condition']} do not agree")
    return found


def shard_name(index: int, num: int) -> str:
    """Return the name of a shard of so many."""
    return f"{NAME}-{SPLIT}.array_record-{index:05d}-of-{num:05d}"


def _shard_lengths(place: Path) -> list[int]:
    found = readers.json_object(place)
    with readers.well_typed(str(place)):
        (split,) = found["splits"]
        lengths = [int(x) for x in split["shardLengths"]]
        if split["name"] != SPLIT or not lengths or min(lengths) < 1:
            raise ValueError(f"the split {split['name']} of {lengths[:5]} examples")
    return lengths


def _reader(place: Path, length: int) -> Any:
    if not place.is_file():
        raise InputError(f"there is no {place}; copy the folder of tokens again")
    try:
        found = array_record_module.ArrayRecordReader(
            str(place), options=_OPTIONS, file_reader_buffer_size=_BUFFER_BYTES
        )
        num = found.num_records()
    except Exception as error:
        raise damaged(place, error) from error
    if num != length:  # 0 where the end is missing
        raise InputError(
            f"{place} has {num} examples and {INFO_FILE} beside it says {length}; it is cut off or "
            "of another set, so copy the folder again"
        )
    return found


def damaged(place: Path, error: Exception) -> InputError:
    """Say that a shard cannot be read."""
    return InputError(f"{place} is damaged ({shown(error)}); copy it again")
