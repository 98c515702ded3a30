"""Mean and covariance of features that come in parts: float64, on the host, merged exactly.

Accelerators have no fast float64, and a float32 covariance moves a FID in its seventh digit. N
examples, D features.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

# Of a covariance's Frobenius norm: how far rounding may leave it from symmetric and from positive.
# E[x x^T] - m m^T in float32 has least eigenvalues of -1e-5 of it (D = 2048, measured).
ROUNDING = 1e-4
# A part's product with itself costs N D^2, adding it to the sum D^2: parts of about D rows or more
# keep the second small.
CHUNK_ROWS = 4096


class Moments(NamedTuple):
    """What the Fréchet distance needs to know of a set of features."""

    mean: Float[np.ndarray, "D"]
    covariance: Float[np.ndarray, "D D"]


def covariance_fault(matrix: Float[np.ndarray, "D D"], rounding: float = ROUNDING) -> str | None:
    """Say why a matrix is no covariance; None if it is one but for rounding.

    Args:
        matrix: finite, float64.
        rounding: how far from symmetric and positive it may be, of its Frobenius norm.
    """
    if not np.any(matrix):
        return None  # of examples that are all equal
    scale = float(np.linalg.norm(matrix))
    gap = float(np.abs(matrix - matrix.T).max())
    if gap > rounding * np.abs(matrix).max():
        return f"is not symmetric (elements differ by {gap:.3g})"
    try:
        # Fails where the least eigenvalue is below -rounding * scale; ten times as quick as those.
        np.linalg.cholesky(matrix + rounding * scale * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        values = np.linalg.eigvalsh(matrix)
        return f"has eigenvalues from {values[0]:.3g} to {values[-1]:.3g}, none may be negative"
    return None


class Sums(NamedTuple):
    """The same of a part of the examples, in a form that can be merged.

    Attributes:
        count: examples.
        mean: float64.
        scatter: the sum of (x - mean)(x - mean)^T over them, float64.
    """

    count: int
    mean: Float[np.ndarray, "D"]
    scatter: Float[np.ndarray, "D D"]

    def moments(self) -> Moments:
        """Mean and unbiased covariance (ddof 1).

        Raises:
            ValueError: for fewer than two examples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs two examples or more, found {self.count}")
        return Moments(self.mean, self.scatter / (self.count - 1))


def sums(features: Num[np.ndarray, "N ..."]) -> Sums:
    """Return the sums of some examples; axes behind the first are flattened."""
    rows = _rows(features).astype(np.float64)
    mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1])
    centred = rows - mean
    return Sums(len(rows), mean, centred.T @ centred)


def merge(parts: Iterable[Sums]) -> Sums:
    """Return the sums of all examples from those of disjoint parts, in any order and of any sizes.

    Args:
        parts: at least one; of several processes in the same order everywhere, or the results
            differ in their last bit.

    Returns:
        The sums of the union.

    Raises:
        ValueError: there is no part, or they have different numbers of features.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
    sample variances", equation 2.1.
    """
    parts = list(parts)
    sizes = sorted({len(part.mean) for part in parts})
    if len(sizes) != 1:
        raise ValueError(f"nothing to merge, or parts of different features: {sizes}")
    count, mean = parts[0].count, parts[0].mean.copy()
    scatter = parts[0].scatter.copy()
    for part in parts[1:]:
        total = count + part.count
        if total == 0:
            continue
        shift = part.mean - mean
        scatter += part.scatter
        scatter += np.outer(shift * (count * part.count / total), shift)
        mean += shift * (part.count / total)
        count = total
    return Sums(count, mean, scatter)


class Accumulator:
    """Sums of features as they come, in memory that does not grow with their number."""

    def __init__(self):
        self.waiting: list[np.ndarray] = []
        self._sums: Sums | None = None

    def add(self, features: Num[np.ndarray, "N ..."]) -> None:
        """Count some more examples in."""
        rows = _rows(features)
        for start in range(0, len(rows), CHUNK_ROWS):
            # A copy: the caller may use its buffer again before the rows' turn comes.
            self.waiting.append(rows[start : start + CHUNK_ROWS].copy())
            if sum(map(len, self.waiting)) >= CHUNK_ROWS:
                self._fold()

    def sums(self) -> Sums:
        """Return the sums of all that was added so far.

        Raises:
            ValueError: nothing was added.
        """
        self._fold()
        if self._sums is None:
            raise ValueError("no features were added")
        return self._sums

    def _fold(self) -> None:
        if self.waiting:
            part = sums(np.concatenate(self.waiting))
            self._sums = part if self._sums is None else merge([self._sums, part])
            self.waiting = []


def _rows(features: Num[np.ndarray, "N ..."]) -> Num[np.ndarray, "N D"]:
    return features.reshape(len(features), math.prod(features.shape[1:]))
