"""The Fréchet distance of samples and a reference: NumPy, float64, no network and no file.

Arrays that hold one example per row may have any number of further axes; they are flattened.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from dimo_jax.evaluation.features.moments import Moments, sums


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


def frechet(real: Moments, samples: Moments | Num[np.ndarray, "N ..."]) -> Frechet:
    """Fréchet distance of two Gaussians: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of L^T C2 L with C1 = L L^T: a
    symmetric matrix, so that singular covariances need neither an epsilon nor complex numbers.
    Where there are fewer samples than features, C2 = X^T X, and but for zeros X C1 X^T has the same
    eigenvalues: it needs no L, and is of the samples' size.

    Args:
        real: moments of the reference, in any float dtype: files have them in either.
        samples: the samples, or their moments, the same D.

    Returns:
        The distance in squared units of the features, with its terms. Rounding may leave it at
        -1e-12 or so where both are equal.

    Source: Heusel et al. 2017, arXiv 1706.08500, equation 6.
    """
    real = Moments(*(np.asarray(x, np.float64) for x in real))
    if not isinstance(samples, Moments) and 1 < len(samples) < len(real.mean):
        rows = samples.reshape(len(samples), -1).astype(np.float64)
        mean = rows.mean(axis=0)
        factor = (rows - mean) / np.sqrt(len(rows) - 1)
        spread = float(np.sum(factor**2))
        products = np.linalg.eigvalsh(factor @ real.covariance @ factor.T)
    else:
        samples = samples if isinstance(samples, Moments) else moments(samples)
        mean, covariance = (np.asarray(x, np.float64) for x in samples)
        spread = float(np.trace(covariance))
        values, vectors = np.linalg.eigh(real.covariance)
        root = vectors * np.sqrt(np.clip(values, 0, None))
        products = np.linalg.eigvalsh(root.T @ covariance @ root)
    mean_term = float(np.sum((real.mean - mean) ** 2))
    traces = float(np.trace(real.covariance)) + spread
    cross_term = 2 * float(np.sum(np.sqrt(np.clip(products, 0, None))))
    return Frechet(mean_term + traces - cross_term, mean_term, traces, cross_term)


def frechet_percent(real: Moments, samples: Moments | Num[np.ndarray, "N ..."]) -> float:
    """Fréchet distance in percent of the real total variance, tr C1.

    Free of the features' scale: 0 for equal moments, 100 for samples that all equal the real mean.
    """
    return 100 * frechet(real, samples).distance / float(np.trace(real.covariance))
