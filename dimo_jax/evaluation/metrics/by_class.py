"""What a mean over all samples hides: distances class by class.

Features are those of the classifier that also gives the Fréchet distance its features.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from dimo_jax.evaluation.features.moments import Moments
from dimo_jax.evaluation.metrics import frechet, neighbours

ORDER = (
    "distance in the classifier's features to the nearest training image of the class that was "
    "asked for"
)


def class_moments(
    features: Float[np.ndarray, "N F"], labels: Int[np.ndarray, "N"], num_classes: int
) -> list[Moments | None]:
    """Mean and covariance of each class; None where it has fewer than two examples."""
    groups = [features[labels == label] for label in range(num_classes)]
    return [frechet.moments(group) if len(group) > 1 else None for group in groups]


def frechet_percents(
    real: Sequence[Moments | None], samples: Sequence[Moments | None], variance: float
) -> list[float | None]:
    """Fréchet distance of each class; None where either side has too few.

    Args:
        real: of the training images, class by class.
        samples: of the samples.
        variance: total variance of all training images, which is 100. One measure for all
            classes, so that they compare.
    """
    return [
        None
        if ours is None or theirs is None
        else 100 * frechet.frechet(ours, theirs).distance / variance
        for ours, theirs in zip(real, samples, strict=True)
    ]


def accuracies(
    predicted: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"], num_classes: int
) -> list[float | None]:
    """Share of each class's samples that the classifier agrees with; None without samples."""
    hits = [predicted[labels == label] == label for label in range(num_classes)]
    return [float(hit.mean()) if len(hit) else None for hit in hits]


def nearest_of_class(
    features: Float[np.ndarray, "N F"],
    labels: Int[np.ndarray, "N"],
    train_features: Float[np.ndarray, "M F"],
    train_labels: Int[np.ndarray, "M"],
) -> tuple[Int[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Return the training image of its class nearest to each sample, and how far it is.

    Args:
        features: of the samples.
        labels: the classes that were requested.
        train_features: of the training split.
        train_labels: theirs.

    Returns:
        (its index, the distance in features; NaN for a class without training images).
    """
    distance, nearest = np.full(len(features), np.nan), np.zeros(len(features), np.int64)
    for label in np.unique(labels):
        samples, real = np.flatnonzero(labels == label), np.flatnonzero(train_labels == label)
        if len(real):
            index, found = neighbours.nearest(features[samples], train_features[real])
            distance[samples], nearest[samples] = found, real[index]
    return nearest, distance
