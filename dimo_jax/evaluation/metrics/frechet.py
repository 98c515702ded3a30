"""Statistics of samples against a reference: NumPy, float64, no network and no file.

Arrays that hold one example per row may have any number of further axes; they are flattened. Every
distance between all pairs is taken block by block, so memory grows with N, never with N x N.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from dimo_jax.evaluation.features.moments import Moments, sums

BLOCK_ROWS = 512  # rows of a distance block: 512 x 50,000 float64 are 0.2 GB


class Inside(NamedTuple):
    """Who lies in whose ball.

    Attributes:
        balls_around: for each sample, how many balls of the reference it lies in.
        recalled: for each reference example, whether it lies in any ball of the samples.
        covered: for each reference example, whether any sample lies in its ball.
    """

    balls_around: Int[np.ndarray, "M"]
    recalled: Bool[np.ndarray, "N"]
    covered: Bool[np.ndarray, "N"]


class Frechet(NamedTuple):
    """The distance and its three terms: distance = mean_term + traces - cross_term."""

    distance: float
    mean_term: float
    traces: float
    cross_term: float


def moments(features: Num[np.ndarray, "N ..."]) -> Moments:
    """Mean and unbiased covariance (ddof 1) in float64.

    Raises:
        ValueError: for fewer than two examples.
    """
    return sums(features).moments()


def frechet(real: Moments, samples: Moments) -> Frechet:
    """Fréchet distance of two Gaussians: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of L^T C2 L with C1 = L L^T: a
    symmetric matrix, so that singular covariances need neither an epsilon nor complex numbers.

    Args:
        real: moments of the reference, in any float dtype: files have them in either.
        samples: moments of the samples, the same D.

    Returns:
        The distance in squared units of the features, with its terms. Rounding may leave it at
        -1e-12 or so where both are equal.

    Source: Heusel et al. 2017, arXiv 1706.08500, equation 6.
    """
    real, samples = (Moments(*(np.asarray(x, np.float64) for x in m)) for m in (real, samples))
    values, vectors = np.linalg.eigh(real.covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    products = np.linalg.eigvalsh(root.T @ samples.covariance @ root)
    mean_term = float(np.sum((real.mean - samples.mean) ** 2))
    traces = float(np.trace(real.covariance) + np.trace(samples.covariance))
    cross_term = 2 * float(np.sum(np.sqrt(np.clip(products, 0, None))))
    return Frechet(mean_term + traces - cross_term, mean_term, traces, cross_term)


def frechet_distance(real: Num[np.ndarray, "N ..."], samples: Num[np.ndarray, "M ..."]) -> float:
    """Fréchet distance between two sets of features, in squared units of the features."""
    return frechet(moments(real), moments(samples)).distance


def frechet_percent(real: Moments, samples: Moments) -> float:
    """Fréchet distance in percent of the real total variance, tr C1.

    Free of the features' scale: 0 for equal moments, 100 for samples that all equal the real mean.
    """
    return 100 * frechet(real, samples).distance / float(np.trace(real.covariance))


def squared_distances(
    rows: Float[np.ndarray, "N D"], others: Float[np.ndarray, "M D"]
) -> Iterator[tuple[slice, Float[np.ndarray, "block M"]]]:
    """Block of rows of the squared Euclidean distances, each with the slice of rows it covers."""
    # Not centred first: gray levels of n/16 have exact products in float64, so distances that are
    # equal compare as equal, which the strict < below needs; subtracting a mean would blur them.
    norms = np.sum(others * others, axis=1)
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        squares = block @ others.T
        squares *= -2
        squares += np.sum(block * block, axis=1)[:, None]
        squares += norms
        yield slice(start, start + len(block)), np.maximum(squares, 0, out=squares)


def nearest(
    rows: Num[np.ndarray, "N ..."], others: Num[np.ndarray, "M ..."]
) -> tuple[Int[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Index of and Euclidean distance to each row's nearest neighbour among `others`."""
    rows, others = _rows(rows), _rows(others)
    index = np.zeros(len(rows), np.int64)
    distance = np.zeros(len(rows))
    for part, squares in squared_distances(rows, others):
        index[part] = squares.argmin(axis=1)
        distance[part] = np.sqrt(squares.min(axis=1))
    return index, distance


def precision_recall_density_coverage(
    real: Num[np.ndarray, "N ..."], samples: Num[np.ndarray, "M ..."], num_neighbours: int
) -> dict[str, float]:
    """Measure how far samples lie inside the real manifold, and real examples inside theirs.

    A ball around each example reaches to its `num_neighbours`-th nearest neighbour in its own set;
    an example is inside where its distance is strictly smaller.

    Args:
        real: the reference.
        samples: what is measured; another number of rows is allowed.
        num_neighbours: k; smaller than either number of rows.

    Returns:
        precision: share of samples inside any real ball.
        recall: share of real examples inside any ball of the samples.
        density: mean number of real balls around a sample, divided by k (may exceed 1).
        coverage: share of real balls with a sample inside.

    Raises:
        ValueError: if either set has no `num_neighbours` neighbours.

    Source: Kynkäänniemi et al., arXiv 1904.06991; Naeem et al., arXiv 2002.09797 (package prdc).
    """
    real, samples = _rows(real), _rows(samples)
    real_radii = _squared_radii(real, num_neighbours)
    sample_radii = _squared_radii(samples, num_neighbours)
    balls_around = np.zeros(len(samples), np.int64)
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for part, squares in squared_distances(real, samples):
        inside = squares < real_radii[part, None]
        balls_around += inside.sum(axis=0)
        covered[part] = inside.any(axis=1)
        recalled[part] = (squares < sample_radii[None]).any(axis=1)
    return shares(Inside(balls_around, recalled, covered), num_neighbours)


def shares(inside: Inside, num_neighbours: int) -> dict[str, float]:
    """precision, recall, density and coverage, from who lies in whose ball."""
    return {
        "precision": float(np.mean(inside.balls_around > 0)),
        "recall": float(np.mean(inside.recalled)),
        "density": float(1 / num_neighbours * np.mean(inside.balls_around)),
        "coverage": float(np.mean(inside.covered)),
    }


def merge_inside(parts: Iterable[Inside]) -> Inside:
    """Return the reference's from those of its consecutive parts, all with the same samples."""
    balls_around, recalled, covered = zip(*parts, strict=True)
    return Inside(np.sum(balls_around, axis=0), np.concatenate(recalled), np.concatenate(covered))


def share_of_duplicates(samples: Shaped[np.ndarray, "N ..."]) -> float:
    """Share of rows that equal an earlier row exactly."""
    rows = _row_bytes(samples)
    return 1 - len(set(rows)) / len(rows)


def share_of_copies(
    samples: Shaped[np.ndarray, "N ..."], training: Shaped[np.ndarray, "M ..."]
) -> float:
    """Share of rows that equal any row of the training set exactly; dtypes must agree."""
    if samples.dtype != training.dtype:
        raise ValueError(f"dtypes differ: {samples.dtype} and {training.dtype}")
    known = set(_row_bytes(training))
    rows = _row_bytes(samples)
    return sum(row in known for row in rows) / len(rows)


def token_entropy(tokens: Int[np.ndarray, "N L"], codebook_size: int) -> float:
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


def accuracy(predicted: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"]) -> float:
    """Share of predictions that equal their label."""
    return float(np.mean(predicted == labels))


def _rows(array: Num[np.ndarray, "N ..."]) -> Float[np.ndarray, "N D"]:
    return np.asarray(array, np.float64).reshape(len(array), -1)


def _row_bytes(array: Shaped[np.ndarray, "N ..."]) -> list[bytes]:
    # Adding zero makes -0.0 and 0.0, equal numbers, equal bytes too.
    return [row.tobytes() for row in np.ascontiguousarray(array + np.zeros((), array.dtype))]


def _squared_radii(rows: Float[np.ndarray, "N D"], num_neighbours: int) -> Float[np.ndarray, "N"]:
    """Squared distance of each row to its k-th nearest other row."""
    if not 0 < num_neighbours < len(rows):
        raise ValueError(f"no {num_neighbours} neighbours among {len(rows)} examples")
    radii = np.zeros(len(rows))
    for part, squares in squared_distances(rows, rows):
        # Itself is left out by its index: a duplicate also lies at distance zero, and counts.
        index = np.arange(part.start, part.stop)
        squares[index - part.start, index] = np.inf
        radii[part] = np.partition(squares, num_neighbours - 1, axis=1)[:, num_neighbours - 1]
    return radii
