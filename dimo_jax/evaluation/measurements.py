"""What is measured of one set of samples, against a training split with labels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dimo_jax.evaluation.features.classifier import FeatureNetwork
from dimo_jax.evaluation.metrics import by_class, frechet
from dimo_jax.evaluation.metrics.by_class import Extremes

Images = Float[np.ndarray, "N H W C"]
Labels = Int[np.ndarray, "N"]

METRICS = {
    "frechet_features": "Fréchet distance in the classifier's features, % of the real variance",
    "frechet_pixels": "Fréchet distance in pixels, % of the real variance",
    "accuracy": "share of samples that the classifier gives the label they were asked for",
    "precision": "share of samples inside the real manifold, in pixels",
    "recall": "share of real images inside the samples' manifold, in pixels",
    "density": "real neighbourhoods around a sample, relative to k, in pixels",
    "coverage": "share of real neighbourhoods with a sample inside, in pixels",
    "duplicates": "share of samples whose tokens equal an earlier sample's",
    "copies": "share of samples whose tokens equal a training image's",
    "entropy": "mean entropy of a token's distribution over the samples, bits",
}


@dataclass(frozen=True)
class Data:
    """What samples are compared with.

    Attributes:
        train_images: float32 [N, H, W, C] in [0, 1]; the reference.
        train_labels: int [N].
        test_images: float32 [M, H, W, C]; the floor.
        test_labels: int [M].
        num_classes: number of classes.
        encode: images -> tokens int [N, L].
        codebook_size: number of codes.
    """

    train_images: Float[np.ndarray, "N H W C"]
    train_labels: Int[np.ndarray, "N"]
    test_images: Float[np.ndarray, "M H W C"]
    test_labels: Int[np.ndarray, "M"]
    num_classes: int
    encode: Callable[[Images], Int[np.ndarray, "N L"]]
    codebook_size: int


class Measured(NamedTuple):
    """One set of samples: all of METRICS, and by_class.METRICS with a value for each class."""

    metrics: dict[str, float]
    per_class: dict[str, list[float | None]]


class Reference:
    """The training split, its moments computed once, and the measurements against it."""

    def __init__(self, data: Data, network: FeatureNetwork, num_neighbours: int):
        self.data = data
        self.network = network
        self.num_neighbours = num_neighbours
        self.pixel_moments = frechet.moments(data.train_images)
        self.train_features = network.features(data.train_images)
        self.feature_moments = frechet.moments(self.train_features)
        self.class_moments = by_class.class_moments(
            self.train_features, data.train_labels, data.num_classes
        )
        self.train_tokens = np.asarray(data.encode(data.train_images), np.int32)

    def distances(self, images: Images) -> dict[str, float]:
        """Return the two Fréchet distances, in percent of the real variance."""
        return self._distances(images, self.network.features(images))

    def _distances(self, images: Images, features: np.ndarray) -> dict[str, float]:
        samples, pixels = frechet.moments(features), frechet.moments(images)
        return {
            "frechet_features": frechet.frechet_percent(self.feature_moments, samples),
            "frechet_pixels": frechet.frechet_percent(self.pixel_moments, pixels),
        }

    def measure(self, images: Images, labels: Labels) -> Measured:
        """Everything, for one set of samples."""
        # Duplicates and copies are told by tokens, all a generator decides on: with a lossy
        # tokenizer no sample could equal a training image exactly. Equal images have equal tokens,
        # so these shares are never below those of exactly equal images.
        tokens = np.asarray(self.data.encode(images), np.int32)
        features, predicted = self.network.features(images), self.network.predict(images)
        metrics = {
            **self._distances(images, features),
            "accuracy": frechet.accuracy(predicted, labels),
            **frechet.precision_recall_density_coverage(
                self.data.train_images, images, self.num_neighbours
            ),
            "duplicates": frechet.share_of_duplicates(tokens),
            "copies": frechet.share_of_copies(tokens, self.train_tokens),
            "entropy": frechet.token_entropy(tokens, self.data.codebook_size),
        }
        num_classes = self.data.num_classes
        of_classes = by_class.class_moments(features, labels, num_classes)
        variance = float(np.trace(self.feature_moments.covariance))
        per_class = {
            "frechet_features": by_class.frechet_percents(self.class_moments, of_classes, variance),
            "accuracy": by_class.accuracies(predicted, labels, num_classes),
        }
        return Measured(metrics, per_class)

    def extremes(self, images: Images, labels: Labels) -> Extremes:
        """Return the worst and the best of the samples, see by_class."""
        return by_class.extremes(
            images,
            self.network.features(images),
            labels,
            self.network.predict(images),
            self.data.train_images,
            self.train_features,
            self.data.train_labels,
        )
