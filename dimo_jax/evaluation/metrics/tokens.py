"""Duplicates, copies and diversity of samples by their tokens: NumPy, exact."""

import numpy as np
from jaxtyping import Int

_ROWS = 64  # of samples compared together: what is counted stays in the cache


def share_of_duplicates(samples: Int[np.ndarray, "N L"]) -> float:
    """Share of rows that equal an earlier row."""
    return 1 - len(np.unique(samples, axis=0)) / len(samples)


def share_of_copies(samples: Int[np.ndarray, "N L"], training: Int[np.ndarray, "M L"]) -> float:
    """Return the share of rows that equal any of the training set; dtypes must agree."""
    if samples.dtype != training.dtype:
        raise ValueError(f"dtypes differ: {samples.dtype} and {training.dtype}")
    known = {row.tobytes() for row in training}
    return sum(row.tobytes() in known for row in samples) / len(samples)


def fewest_differences(
    samples: Int[np.ndarray, "N L"], training: Int[np.ndarray, "M L"]
) -> Int[np.ndarray, "N"]:
    """Return in how many places each row differs from the training row that is nearest so.

    Takes N * M * L comparisons: 0.2 seconds for 2,000 samples, 3,563 pictures and 64 tokens on one
    core.
    """
    by_place = np.ascontiguousarray(training.T)
    fewest = np.empty(len(samples), np.int32)
    for start in range(0, len(samples), _ROWS):
        rows = samples[start : start + _ROWS]
        equal = np.zeros((len(rows), len(training)), np.int32)
        for place, theirs in enumerate(by_place):
            equal += rows[:, place, None] == theirs
        fewest[start : start + _ROWS] = samples.shape[1] - equal.max(axis=1)
    return fewest


def entropy(tokens: Int[np.ndarray, "N L"], codebook_size: int) -> float:
    """Entropy of the samples' marginals: the mean over positions, in bits for each token.

    The distribution of a position is the share of samples with each code there: a diversity of the
    whole set, 0 where all samples are the same and log2(codebook_size) where every code is as
    frequent everywhere. It knows nothing of the dependence between positions.

    Args:
        tokens: int [N, L], in [0, codebook_size).
        codebook_size: number of codes.

    Raises:
        ValueError: for a token outside the codebook.
    """
    if tokens.min() < 0 or tokens.max() >= codebook_size:
        raise ValueError(f"tokens in [{tokens.min()}, {tokens.max()}], codes: {codebook_size}")
    num_samples, num_tokens = tokens.shape
    flat = tokens + np.arange(num_tokens) * codebook_size
    counts = np.bincount(flat.reshape(-1), minlength=num_tokens * codebook_size)
    shares = counts[counts > 0] / num_samples
    # Adding zero turns the -0.0 of a constant set into 0.0.
    return float(-np.sum(shares * np.log2(shares)) / num_tokens + 0.0)
