"""What a mean over all samples hides: distances class by class, the worst and the best samples.

Features are those of the classifier that also gives the Fréchet distance its features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dimo_jax.evaluation.features.moments import Moments
from dimo_jax.evaluation.metrics import frechet

# Samples at either end.
NUM_EXTREMES = 10
METRICS = {
    "frechet_features": "Fréchet distance between the samples of a class and its training images "
    "in the classifier's features, % of the variance of all training images",
    "accuracy": "share of the samples of a class that the classifier gives that class",
}
ORDER = (
    "distance in the classifier's features to the nearest training image of the class that was "
    "asked for"
)


@dataclass(frozen=True)
class Extreme:
    """One sample at an end of the order.

    Attributes:
        image: the sample, [H, W, C] in [0, 1].
        nearest: the training image that its distance is measured to.
        label: the class that was asked for.
        predicted: the class that the classifier sees.
        distance: see ORDER.
    """

    image: Float[np.ndarray, "H W C"]
    nearest: Float[np.ndarray, "H W C"]
    label: int
    predicted: int
    distance: float


@dataclass(frozen=True)
class Extremes:
    """The samples farthest from the data, farthest first, and the nearest, nearest first."""

    worst: list[Extreme]
    best: list[Extreme]


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
        variance: total variance of all training images; 100 stands for it. One measure for all
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


def over_seeds(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean and spread (ddof 1, 0 for a single value); None where one of the seeds has no value."""
    if not values or any(value is None for value in values):
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": std}


def extremes(
    images: Float[np.ndarray, "N H W C"],
    features: Float[np.ndarray, "N F"],
    labels: Int[np.ndarray, "N"],
    predicted: Int[np.ndarray, "N"],
    train_images: Float[np.ndarray, "M H W C"],
    train_features: Float[np.ndarray, "M F"],
    train_labels: Int[np.ndarray, "M"],
    number: int = NUM_EXTREMES,
) -> Extremes:
    """Return the samples farthest from and nearest to the training images of their own class.

    Args:
        images: samples, in [0, 1].
        features: theirs.
        labels: the classes that were asked for; samples of a class without training images are
            left out.
        predicted: the classes that the classifier sees.
        train_images: the training split.
        train_features: theirs.
        train_labels: theirs.
        number: how many at either end; fewer where there are fewer samples. No sample is in both.

    Returns:
        Both ends; of equal distances the earlier sample counts as the nearer one.
    """
    distance = np.full(len(images), np.nan)
    nearest = np.zeros(len(images), np.int64)
    for label in np.unique(labels):
        samples, real = np.flatnonzero(labels == label), np.flatnonzero(train_labels == label)
        if len(real):
            index, found = frechet.nearest(features[samples], train_features[real])
            distance[samples], nearest[samples] = found, real[index]
    known = np.flatnonzero(np.isfinite(distance))
    number = min(number, len(known) // 2)
    rising = known[np.argsort(distance[known], kind="stable")]

    def take(order: np.ndarray) -> list[Extreme]:
        return [
            Extreme(
                images[i],
                train_images[nearest[i]],
                int(labels[i]),
                int(predicted[i]),
                float(distance[i]),
            )
            for i in order[:number]
        ]

    return Extremes(worst=take(rising[::-1]), best=take(rising))
