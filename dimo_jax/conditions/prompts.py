"""Prompts of a list as conditions: their order in training, and their features.

Axes: B batch, K auxiliary updates a step, N prompts, T ids of a text.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from dimo_jax.conditions.clip_tokenizer import ClipTokenizer
from dimo_jax.conditions.text import TextConditions
from dimo_jax.conditions.text_cache import TextCache
from dimo_jax.data import stream
from dimo_jax.data.prompts import PromptList
from dimo_jax.parallel import mesh
from dimo_jax.parallel.sharding import Layout

Features = dict[str, Float[np.ndarray, "N ..."]]


def in_turn(num: int, count: int) -> Int[np.ndarray, "N"]:
    """Return numbers of texts in rounds, each text once in a round.

    In steps over the list, which may be sorted: a part of a round is of all of it.

    Args:
        num: N.
        count: of the texts.

    Returns:
        [N] int32.
    """
    golden = round(0.618 * count)
    step = next(x for x in range(max(golden, 1), count + 1) if math.gcd(x, count) == 1)
    return (np.arange(num) * step % count).astype(np.int32)


class PromptIds:
    """Texts as what a network reads that is trained together with its text tower: ids.

    Args:
        texts: of a data set.
        tokenizer: the one of the tower.
        negative: the text of the unconditional branch.

    Attributes:
        num: of the texts.
    """

    def __init__(self, texts: Sequence[str], tokenizer: ClipTokenizer, negative: str):
        self._texts, self._tokenizer, self._negative = texts, tokenizer, negative
        self.num = len(texts)

    def identity(self) -> dict[str, str]:
        """Return what a training depends on besides its settings: the words, of the texts too."""
        return self._tokenizer.identity

    def features(self, numbers: Int[np.ndarray, "N"]) -> dict[str, Int[np.ndarray, "N T"]]:
        """Return what the network is given for some texts."""
        return self.of_texts([self._texts[int(number)] for number in numbers])

    def of_texts(self, texts: Sequence[str]) -> dict[str, Int[np.ndarray, "N T"]]:
        """Return what it is given for any texts."""
        return {"ids": self._tokenizer(texts)}

    def null(self, size: int) -> dict[str, Int[np.ndarray, "N T"]]:
        """Return what it is given for no condition: the negative prompt."""
        return {"ids": np.repeat(self._tokenizer([self._negative]), size, axis=0)}


class PromptConditions:
    """A list of prompts: what a run with text is conditioned on.

    Args:
        prompts: the list.
        encoder: makes their features.
        negative: the text of the teacher's unconditional branch.

    Attributes:
        num: of the prompts.
    """

    def __init__(self, prompts: PromptList, encoder: TextConditions, negative: str):
        self._prompts, self._encoder, self._negative = prompts, encoder, negative
        self._cache: TextCache | None = None
        self._unfilled: TextCache | None = None
        self.num = len(prompts.texts)

    def encoded_by(self, encoder: TextConditions) -> "PromptConditions":
        """Return the same prompts with another encoder."""
        return PromptConditions(self._prompts, encoder, self._negative)

    def identity(self) -> dict[str, str]:
        """Return what a training depends on besides its settings."""
        return {"prompts": self._prompts.sha256, **self._encoder.identity}

    def open_cache(self, folder: str, dtype: str) -> None:
        """Choose a folder for the features, and check it; nothing is written.

        Args:
            folder: see TextCache.
            dtype: what the run computes in.

        Raises:
            InputError: as TextCache.
        """
        self._unfilled = TextCache(folder, self.num, self._encoder.shapes, dtype, self.identity())

    def fill_cache(self) -> None:
        """Take the features from that folder from now on, which is filled first; if there is one.

        Raises:
            InputError: as TextCache.fill.
        """
        if self._unfilled is not None:
            self._unfilled.fill(self.features)
            self._encoder.release()
            self._cache, self._unfilled = self._unfilled, None

    def features(self, numbers: Int[np.ndarray, "N"]) -> Features:
        """Return what the network is given for some prompts."""
        if self._cache is None:
            return self._encoder(self._texts(numbers))
        return self._encoder.with_micro(self._cache.rows(numbers))

    def of_texts(self, texts: Sequence[str]) -> Features:
        """Return what it is given for any texts."""
        return self._encoder(texts)

    def null(self, size: int) -> Features:
        """Return what the teacher is given in its unconditional branch: the negative prompt."""
        one = self._encoder([self._negative])
        return jax.tree.map(lambda x: np.repeat(x, size, axis=0), one)

    def batches(
        self, seed: int, size: int, updates: int, layout: Layout
    ) -> Callable[[int], tuple[Any, Any, Any]]:
        """Return the conditions of every distillation step.

        The prompts run in one endless stream, every one once an epoch (data.stream); a step takes
        the generator's batch from it, then the auxiliary's, as the authors' loader does.

        Args:
            seed: of the run.
            size: B.
            updates: K, of the auxiliary, each with prompts of its own; 0 where it has the
                generator's.
            layout: the mesh. A process makes ids, or reads features, for its own devices alone.

        Returns:
            number of the step -> (generator's [B], auxiliary's [K, B] or None, null [B]), each a
            dict of features on the mesh, the same whatever the number of processes.
        """
        empty = mesh.put(self.null(size), layout.batch)
        self._encoder.release()
        make = self._computed(layout) if self._cache is None else self._read(layout)

        def batch_of(step: int) -> tuple[Any, Any, Any]:
            first = step * (1 + updates)
            numbers = [
                stream.batch_indices(seed, first + k, size, self.num) for k in range(1 + updates)
            ]
            return (*make(np.stack(numbers)), empty)

        return batch_of

    def _texts(self, numbers: Int[np.ndarray, "N"]) -> Sequence[str]:
        return [self._prompts.texts[int(number)] for number in numbers]

    def _computed(self, layout: Layout) -> Callable[..., tuple[Any, Any]]:
        """Features by the encoder on the mesh: numbers [1 + K, B] -> both conditions."""
        encode = self._encoder.on_mesh(layout)

        def make(numbers: Int[np.ndarray, "K B"]) -> tuple[Any, Any]:
            def ids(*index: slice) -> Int[np.ndarray, "K B T"]:
                some = numbers[index[:2]]
                return self._encoder.ids(self._texts(some.ravel())).reshape(*some.shape, -1)

            shape = (*numbers.shape, self._encoder.context)
            return encode(mesh.from_rows(shape, layout.stacked, ids))

        return make

    def _read(self, layout: Layout) -> Callable[..., tuple[Any, Any]]:
        """Features from the cache, likewise."""

        def make(numbers: Int[np.ndarray, "K B"]) -> tuple[Any, Any]:
            # A file is read once for all names.
            features = functools.cache(lambda *some: self.features(np.asarray(some)))

            def placed(some: Int[np.ndarray, "..."], sharding: Any) -> dict[str, jax.Array]:
                def rows(name: str, *index: slice) -> np.ndarray:
                    part = some[index[: some.ndim]]
                    found = features(*part.ravel().tolist())[name]
                    return found.reshape(*part.shape, *found.shape[1:])

                return {
                    name: mesh.from_rows(
                        (*some.shape, *x.shape[1:]), sharding, functools.partial(rows, name)
                    )
                    for name, x in self.features(np.empty(0, np.int64)).items()
                }

            several = placed(numbers[1:], layout.stacked) if len(numbers) > 1 else None
            return placed(numbers[0], layout.batch), several

        return make
