"""The feature network: a classifier fitted on the training split, kept as a bundle.

Fréchet distances of generated images want features that know what matters in such images. For the
digits a small classifier of the same split takes the place that Inception has for photographs.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from dimo_jax import bundles, models
from dimo_jax.common import files, rng, trees
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.data import stream
from dimo_jax.models.classifier import Classifier

BATCH_SIZE = 512  # images in one call; the last call is padded, so there is one compilation


@dataclass(frozen=True)
class FitSettings:
    """How the classifier is fitted.

    Attributes:
        channels: width of each convolution.
        num_features: size of the penultimate layer, whose values are the features.
        dropout: on the features, before the last layer.
        num_steps: AdamW steps; the rate decays to zero along a cosine.
        batch_size: images in a step.
        learning_rate: at the first step.
        weight_decay: AdamW's.
        seed: of initial parameters, batches and dropout.
    """

    channels: tuple[int, ...]
    num_features: int
    dropout: float
    num_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int


class FeatureNetwork:
    """A fitted classifier with batching: features and predictions of any number of images."""

    def __init__(self, classifier: Classifier, params: Any):
        self.classifier = classifier
        self.params = params
        self.params_hash = trees.fingerprint(params)
        self._features = jax.jit(classifier.features)
        self._logits = jax.jit(classifier.logits)

    def features(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N F"]:
        """Penultimate activations, float32 [N, num_features], of images in [0, 1]."""
        return self._in_batches(self._features, images)

    def predict(self, images: Float[np.ndarray, "N H W C"]) -> Int[np.ndarray, "N"]:
        """Return the most likely class of each image, int32 [N]."""
        return self._in_batches(self._logits, images).argmax(axis=-1).astype(np.int32)

    def _in_batches(self, function: Callable[..., Array], images: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), BATCH_SIZE):
            part = np.asarray(images[start : start + BATCH_SIZE], np.float32)
            padding = [(0, BATCH_SIZE - len(part))] + [(0, 0)] * 3
            parts.append(np.asarray(function(self.params, np.pad(part, padding)))[: len(part)])
        return np.concatenate(parts)


def fit(
    images: Float[np.ndarray, "N H W C"],
    labels: Int[np.ndarray, "N"],
    num_classes: int,
    settings: FitSettings,
) -> FeatureNetwork:
    """Fit the classifier: softmax cross-entropy, AdamW, no augmentation.

    Args:
        images: float32 [N, H, W, C] in [0, 1].
        labels: int [N] in [0, num_classes).
        num_classes: number of classes.
        settings: sizes and optimization.

    Returns:
        The fitted network; the same inputs give the same parameters, bit for bit on one machine.
    """
    classifier = models.build(model_config(images.shape[1:], num_classes, settings))
    schedule = optax.cosine_decay_schedule(settings.learning_rate, settings.num_steps)
    optimizer = optax.adamw(schedule, weight_decay=settings.weight_decay)
    inputs, targets = jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)

    def loss(params, batch, dropout_key):
        logits = classifier.logits(params, inputs[batch], dropout_key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets[batch]).mean()

    # A program for each step: within a loop of one program XLA's CPU backend has no fast
    # convolutions (jaxlib 0.10.2), and a step on emoji takes more than ten times as long.
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, moments, index, batch):
        dropout_key = rng.stream_key(settings.seed, "classifier_dropout", index)
        gradient = jax.grad(loss)(params, batch, dropout_key)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments

    params = classifier.init(rng.stream_key(settings.seed, "classifier_init"))
    moments = optimizer.init(params)
    for index in range(settings.num_steps):
        batch = stream.batch_indices(settings.seed, index, settings.batch_size, len(images))
        params, moments = step(params, moments, np.int32(index), batch)
    return FeatureNetwork(classifier, params)


def load_or_fit(
    path: AnyPath | str,
    images: Float[np.ndarray, "N H W C"],
    labels: Int[np.ndarray, "N"],
    num_classes: int,
    settings: FitSettings,
) -> FeatureNetwork:
    """Return the classifier at `path` if `fit` would give the same, else a new one, kept there.

    The bundle records a hash of the training images and labels and the settings. If either differs,
    or the bundle cannot be read, the classifier is fitted again and replaces it.

    Args:
        path: directory of the bundle, of kind "classifier"; parents are made.
        images: as in `fit`.
        labels: as in `fit`.
        num_classes: as in `fit`.
        settings: as in `fit`.

    Returns:
        The network, the same one whether it was kept or is new.
    """
    path = files.path(path)
    origin = {
        "training_data": trees.fingerprint({"images": images, "labels": labels}),
        "settings": asdict(settings) | {"channels": list(settings.channels)},
    }
    if (
        kept := _load(path, model_config(images.shape[1:], num_classes, settings), origin)
    ) is not None:
        return kept
    network = fit(images, labels, num_classes, settings)
    bundles.save(
        path,
        kind="classifier",
        model=network.classifier.config,
        params=network.params,
        provenance=origin,
    )
    return network


def _load(path: AnyPath, config: Mapping[str, Any], origin: Mapping) -> FeatureNetwork | None:
    if not path.exists():
        return None
    try:
        bundle = bundles.load(path)
    except InputError as error:
        logging.warning("fitting the feature classifier again: %s", error)
        return None
    found = (bundle.kind, bundle.model, bundle.provenance)
    if found != ("classifier", config, origin):
        logging.info("fitting the feature classifier again: %s is of other data or settings", path)
        return None
    return FeatureNetwork(bundle.build(), bundle.params)


def model_config(
    image_shape: Sequence[int], num_classes: int, settings: FitSettings
) -> dict[str, Any]:
    """Return what models.build makes the classifier of.

    Args:
        image_shape: (H, W, C).
        num_classes: as in `fit`.
        settings: as in `fit`.
    """
    return {
        "name": "classifier",
        "image_shape": list(image_shape),
        "channels": list(settings.channels),
        "num_features": settings.num_features,
        "num_classes": num_classes,
        "dropout": settings.dropout,
    }
