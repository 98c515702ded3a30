"""The order of the training examples, as a function of (seed, step): nothing to save or restore."""

import functools
import math

import numpy as np
from jaxtyping import Int, UInt64

# Orders of more examples are computed place by place, in no memory. Those of fewer are ranked, as
# ever: what was trained before there was another order keeps its bits.
MAX_RANKED = 2**20
_ROUNDS = 8
# splitmix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
_STEP, _FIRST, _SECOND = (
    np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _keys(seed: int, *which: int, num: int) -> list[np.uint64]:
    # A spawn key, since [seed, epoch] as entropy is ambiguous once the seed exceeds 32 bits.
    words = np.random.SeedSequence(seed, spawn_key=which)
    return list(words.generate_state(num, np.uint64))


def _mixed(words: UInt64[np.ndarray, "N"], key: np.uint64) -> UInt64[np.ndarray, "N"]:
    """Return random-looking words, a bijection for each key."""
    words = (words + key) * _STEP
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))


@functools.lru_cache(maxsize=4)
def _ranked_order(seed: int, epoch: int, num_examples: int) -> Int[np.ndarray, "N"]:
    # Raw words of the bit generator, ranked: numpy keeps those the same for ever, and says that it
    # may change Generator.permutation.
    words = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    return np.argsort(words.random_raw(num_examples), kind="stable")


def _permuted(
    seed: int, epoch: int, places: Int[np.ndarray, "B"], num_examples: int
) -> Int[np.ndarray, "B"]:
    """Return what stands at some places of a random permutation of 0 .. num_examples - 1.

    A Feistel cipher over Z_a x Z_b, the smallest such rectangle, walked along its cycle until it is
    back among the examples.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, methods 2 and 3.
    """
    a = math.isqrt(num_examples - 1) + 1
    b = -(-num_examples // a)
    keys = _keys(seed, epoch, num=_ROUNDS)
    found = places.astype(np.uint64)
    walking = np.arange(len(found))
    while len(walking):
        left, right = np.divmod(found[walking], np.uint64(b))
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            left = (left + _mixed(right, even) % np.uint64(a)) % np.uint64(a)
            right = (right + _mixed(left, odd) % np.uint64(b)) % np.uint64(b)
        found[walking] = left * np.uint64(b) + right
        walking = walking[found[walking] >= num_examples]
    return found.astype(np.int64)


def batch_indices(seed: int, step: int, batch_size: int, num_examples: int) -> Int[np.ndarray, "B"]:
    """Return which examples make up the batch of a step.

    The examples run in one endless stream: epoch e is a random permutation that depends on
    (seed, e) alone, and step s takes positions s * batch_size .. (s + 1) * batch_size - 1. Where
    the batch does not divide the number of examples, some batches take the end of one epoch and the
    start of the next.

    Args:
        seed: of the run, not negative.
        step: counted from 0.
        batch_size: B, of all processes together; it may exceed num_examples.
        num_examples: in the data set.

    Returns:
        [B] int64, each in 0 .. num_examples - 1.

    Raises:
        ValueError: if seed or step is negative, or a size is below 1.
    """
    if seed < 0 or step < 0 or batch_size < 1 or num_examples < 1:
        raise ValueError(
            f"seed {seed}, step {step}, batch_size {batch_size}, num_examples {num_examples}: "
            "expected seed and step >= 0, sizes >= 1"
        )
    start, stop = step * batch_size, (step + 1) * batch_size
    parts = []
    for epoch in range(start // num_examples, (stop - 1) // num_examples + 1):
        first = epoch * num_examples
        places = np.arange(max(start - first, 0), min(stop - first, num_examples))
        if num_examples <= MAX_RANKED:
            parts.append(_ranked_order(seed, epoch, num_examples)[places])
        else:
            parts.append(_permuted(seed, epoch, places, num_examples))
    return np.concatenate(parts)  # a copy, always: the cached orders must not reach the caller


def batch_views(
    seed: int, step: int, chosen: Int[np.ndarray, "B"], num_examples: int, num_views: int
) -> Int[np.ndarray, "B"]:
    """Return which version of each example the batch of a step takes.

    A function of (seed, epoch, example): the first is random, and each epoch takes the next, so
    that every num_views epochs see each version of each example once.

    Args:
        seed: of the run.
        step: counted from 0.
        chosen: [B], the step's `batch_indices`.
        num_examples: in the data set.
        num_views: versions of each.

    Returns:
        [B] int64, each in 0 .. num_views - 1.
    """
    epochs = (step * len(chosen) + np.arange(len(chosen))) // num_examples
    # Two words: an epoch's key has one.
    (key,) = _keys(seed, 0, 0, num=1)
    first = _mixed(chosen.astype(np.uint64), key) % np.uint64(num_views)
    return (first.astype(np.int64) + epochs) % num_views
