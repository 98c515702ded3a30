"""The order of the training examples, as a function of (seed, step): nothing to save or restore."""

import functools

import numpy as np
from jaxtyping import Int


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, num_examples: int) -> Int[np.ndarray, "N"]:
    # Raw words of the bit generator, ranked: numpy keeps those the same for ever, and says that it
    # may change Generator.permutation. The epoch is a spawn key since [seed, epoch] as entropy is
    # ambiguous once the seed exceeds 32 bits.
    words = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    return np.argsort(words.random_raw(num_examples), kind="stable")


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
        order = _epoch_order(seed, epoch, num_examples)
        parts.append(order[max(start - first, 0) : stop - first])
    return np.concatenate(parts)  # a copy, always: the cached orders must not reach the caller
