"""What a run trains on and is measured against: a built-in set of pictures, or a folder of tokens.

Both give the same: examples by index, the two splits of the report where there is one, and how many
examples each class has.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dimo_jax.common.errors import InputError, about
from dimo_jax.common.files import AnyPath
from dimo_jax.common.progress import Progress
from dimo_jax.common.shown import shown
from dimo_jax.data import stream, token_sets
from dimo_jax.data.built_in import BuiltIn, Pictures
from dimo_jax.data.examples import Examples, in_memory
from dimo_jax.data.token_sets import TokenSet
from dimo_jax.models import Network
from dimo_jax.parallel import distributed
from dimo_jax.tokenizers import Tokenizer, tokenizer

Config = Mapping[str, Any]
# The report holds all pictures in memory, in float32, and compares each sample with each of them.
MAX_REPORT_BYTES = 1 << 30
_TEST_SHARE = 10  # of a small set, one in so many is kept for the report
_SAMPLED = 64  # examples that a set is known by
_AT_ONCE = 1 << 14  # labels read at a time
_DECODED_AT_ONCE = 64


class Splits(NamedTuple):
    """The pictures that samples are compared with."""

    train: Pictures
    test: Pictures


@dataclasses.dataclass(frozen=True)
class BuiltInSet:
    """A built-in set of pictures.

    Attributes:
        pictures: the set.
        where: parent folder of its files.
    """

    pictures: type[BuiltIn]
    where: AnyPath | str
    source = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the labels; none: their numbers."""
        return self.pictures.CLASS_NAMES

    @property
    def texts(self) -> tuple[str, ...]:
        """Return those of the training split."""
        return self._both.train.texts

    @functools.cached_property
    def _both(self) -> Splits:
        load = self.pictures.load
        found = distributed.lead_first(lambda: [load(x, self.where) for x in ("train", "test")])
        return Splits(*found)

    def splits(self, tokenizer: Tokenizer, params: Any) -> Splits | None:
        """Return the pictures of the report."""
        return self._both

    def examples(self, tokenizer: Tokenizer, params: Any, of_texts: bool = False) -> Examples:
        """Return the training split, encoded; numbered by its texts, or by classes."""
        train = self._both.train
        encoded = np.asarray(tokenizer.encode(params, train.images), np.int32)
        numbers = np.arange(len(train.texts)) if of_texts else train.labels
        return in_memory(encoded, np.asarray(numbers, np.int32))

    def counts(self, num_classes: int) -> tuple[int, ...]:
        """Return how many training examples each class has."""
        return tuple(np.bincount(self._both.train.labels, minlength=num_classes).tolist())


@dataclasses.dataclass(frozen=True)
class EncodedSet:
    """A folder of tokens, of which some examples may be kept from the training.

    Attributes:
        tokens: the folder.
        num_test: examples that are kept from the training for the report; 0: there is no report.
    """

    tokens: TokenSet
    num_test: int

    @property
    def source(self) -> str:
        """Say what the report's real images are."""
        kept = f", {self.num_test} of them kept from the training as the test split"
        return (
            f"{self.tokens.facts.source}, {self.tokens.num} pictures as the tokenizer decodes them"
            f"{kept if self.num_test else ''}"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the labels; none: their numbers."""
        return self.tokens.class_names

    @functools.cached_property
    def texts(self) -> tuple[str, ...]:
        """Return the captions of the training examples; none where there are none."""
        if self.tokens.condition != "text":
            return ()
        return tuple(self.tokens.texts(self._parts[0].tolist()))

    def _at(self, indices: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and labels of any examples; those with captions are of one class."""
        tokens, numbers = self.tokens.at(indices, views)
        return tokens, numbers if self.tokens.condition == "label" else np.zeros_like(numbers)

    @functools.cached_property
    def _parts(self) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "M"]]:
        """Indices of the training and the test split, ascending."""
        num = self.tokens.num
        if not self.num_test:
            return np.arange(num), np.arange(0)
        chosen = stream.batch_indices(0, 0, num, num)  # not of the run's seed: runs compare
        return np.sort(chosen[self.num_test :]), np.sort(chosen[: self.num_test])

    def splits(self, tokenizer: Tokenizer, params: Any) -> Splits | None:
        """Return the pictures of the report, decoded; None: there are none."""
        if not self.num_test:
            return None
        return Splits(*(self._decoded(part, tokenizer, params) for part in self._parts))

    def _decoded(self, indices: Int[np.ndarray, "N"], codec: Tokenizer, params: Any) -> Pictures:
        tokens, labels = self._at(indices, np.zeros_like(indices))
        images = tokenizer.decode_in_chunks(codec, params, tokens, _DECODED_AT_ONCE)
        texts = self.tokens.texts(indices.tolist()) if self.tokens.condition == "text" else ()
        return Pictures(images, labels, tuple(texts))

    def examples(self, tokenizer: Tokenizer, params: Any, of_texts: bool = False) -> Examples:
        """Return the training examples, read as they are needed; numbered as a BuiltInSet's."""
        kept = self._parts[0] if self.num_test else None  # a large set has no list of all

        def at(indices: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            tokens, labels = self._at(indices if kept is None else kept[indices], views)
            return tokens, indices.astype(np.int32) if of_texts else labels

        num = self.tokens.num if kept is None else len(kept)
        return Examples(num, self.tokens.views, at, {"tokens": self.fingerprint})

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what the folder says of itself, and of some of its examples."""
        found = self.tokens
        said = json.dumps({**dataclasses.asdict(found.facts), "num": found.num}, default=dict)
        some = np.linspace(0, found.num - 1, min(_SAMPLED, found.num)).astype(np.int64)
        tokens, numbers = found.at(some, np.zeros_like(some))
        digest = hashlib.sha256(said.encode())
        digest.update(tokens.tobytes() + numbers.tobytes())
        return digest.hexdigest()

    def counts(self, num_classes: int) -> tuple[int, ...]:
        """Return how many training examples each class has; reads them all."""
        which = self._parts[0]
        found = np.zeros(num_classes, np.int64)
        with Progress("classes", silent=not distributed.is_lead()) as progress:
            for start in range(0, len(which), _AT_ONCE):
                some = which[start : start + _AT_ONCE]
                _, labels = self._at(some, np.zeros_like(some))
                found += np.bincount(labels, minlength=num_classes)
                progress.update(start + len(some), len(which), "examples counted")
        return tuple(found.tolist())


TrainingSet = BuiltInSet | EncodedSet


def resolved(config: Config) -> dict[str, Any]:
    """Return the config with what its folder of tokens says in place of -1; others as they are.

    Args:
        config: a complete config that validation.validate took.

    Raises:
        InputError: the folder cannot be used, or the config contradicts it.
    """
    data = config["data"]
    if data["name"] != "tokens":
        return dict(config)
    if not data["path"]:
        if data["num_classes"] < 1:
            raise InputError(
                "config.data.num_classes is -1, those of a folder of tokens, and config.data.path "
                "is empty; give one of them"
            )
        return dict(config)
    with about("config.data.path"):
        found = token_sets.open_set(data["path"])
    with_captions = found.condition == "text"
    if with_captions != (data["condition"] == "text"):
        raise InputError(
            f"config.data.path={data['path']} has {'' if with_captions else 'no '}captions, and "
            f"config.data.condition is {data['condition']}; give the other one (text with a "
            "network like that of configs/emoji.py:text), or encode other pictures"
        )
    own = len(found.class_names) or 1
    if data["num_classes"] not in (-1, own):
        raise InputError(
            f"config.data.num_classes is {data['num_classes']}, and {found.path} has {own}; leave "
            "it at -1"
        )
    num_test = _num_test(found, data["num_test"], config["evaluation"]["num_neighbours"])
    return {**config, "data": {**data, "num_classes": own, "num_test": num_test}}


def _num_test(found: TokenSet, wanted: int, num_neighbours: int) -> int:
    needed = found.num * found.facts.image_size**2 * 3 * np.dtype(np.float32).itemsize
    is_small = needed <= MAX_REPORT_BYTES
    if wanted == -1:
        share = found.num // _TEST_SHARE
        return share if is_small and share > num_neighbours else 0
    if wanted and not is_small:
        raise InputError(
            f"config.data.num_test is {wanted}, for a report against {found.num} pictures, which "
            f"take {needed / 2**30:.1f} GiB, and at most {MAX_REPORT_BYTES / 2**30:.0f} GiB are "
            "held; give 0, and measure with python -m dimo_jax.evaluate"
        )
    if wanted >= found.num:
        raise InputError(
            f"config.data.num_test is {wanted}, and {found.path} has {found.num} examples; give "
            "fewer"
        )
    return wanted


def examples_to_read(config: Config, network: Network) -> tuple[Examples, Sequence[str]]:
    """Return what a benchmark reads of a folder of tokens, whatever encoded them, and its captions.

    Raises:
        InputError: the config names none, it is of other sizes than the network, or has captions
            where the network takes classes, or none where it takes text.
    """
    if not config["data"]["path"]:
        raise InputError(
            "--what=data reads a folder of tokens; give --config.data.path, with a config like "
            "configs/pictures.py"
        )
    found = token_sets.open_set(config["data"]["path"])
    found.check_sizes(
        network.num_tokens, network.codebook_size, "the network", "set config.tokenizer to match"
    )
    with_captions, takes_text = found.condition == "text", network.num_classes == 0
    if with_captions != takes_text:
        raise InputError(
            f"{found.path} has {'' if with_captions else 'no '}captions, and the network "
            f"{network.config['name']} takes {'text' if takes_text else 'classes'}; give a config "
            f"like configs/{'pictures.py' if takes_text else 'emoji.py:text'}"
        )
    return Examples(found.num, found.views, found.at), found.texts() if with_captions else ()


def open_encoded(config: Config, codec: Tokenizer, digest: str | None) -> EncodedSet:
    """Return the folder of tokens that a config names.

    Args:
        config: a complete config, `resolved`.
        codec: the run's tokenizer.
        digest: its fingerprint; None: its parameters are random.

    Raises:
        InputError: it cannot be read, or is of another tokenizer.
    """
    with about("config.data.path"):
        found = token_sets.open_set(config["data"]["path"])
    if digest is None:
        raise InputError(
            f"config.tokenizer.bundle is empty, and {found.path} was encoded by the tokenizer "
            f"{shown(found.facts.tokenizer['config'].get('name'))} of hash "
            f"{found.tokenizer_hash[:12]}; give its bundle"
        )
    own = config["tokenizer"]["bundle"] or "config.tokenizer, without a bundle"
    found.check_tokenizer(codec.config["name"], digest, f"the run's ({own})")
    found.check_sizes(
        codec.num_tokens, codec.codebook_size, "the tokenizer", "encode the pictures again"
    )
    made = EncodedSet(found, config["data"]["num_test"])
    # Each process reads the folder itself, and the path may mean another one on each machine.
    distributed.assert_same({"config.data.path": made.fingerprint})
    return made
