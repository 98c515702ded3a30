"""A small convolutional classifier; its penultimate layer gives the evaluation its features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dimo_jax.common.errors import InputError

Params = Any  # a pytree of arrays


@dataclass(frozen=True)
class Classifier:
    """A classifier as pure functions of its parameters.

    Attributes:
        config: plain values that rebuild it through models.build.
        image_shape: (height, width, channels) of the images it takes.
        num_features: size of the penultimate layer.
        num_classes: number of classes.
        init: key -> params.
        features: (params, images float32 [B, H, W, C] in [0, 1]) -> float32 [B, num_features].
        logits: (params, images, dropout_key=None) -> float32 [B, num_classes]; a key switches the
            dropout before the last layer on, which only its training does.
    """

    config: dict
    image_shape: tuple[int, ...]
    num_features: int
    num_classes: int
    init: Callable[[Key[Array, ""]], Params]
    features: Callable[[Params, Float[Array, "B H W C"]], Float[Array, "B F"]]
    logits: Callable[..., Float[Array, "B K"]]


class _Network(nn.Module):
    """3x3 convolutions, the image halved after each but the last; then two dense layers."""

    channels: tuple[int, ...]
    num_features: int
    num_classes: int
    dropout: float

    def setup(self):
        # Uniform: the default, a truncated normal, takes seconds to compile for each new shape.
        start = nn.initializers.lecun_uniform()
        self.convolutions = [nn.Conv(n, (3, 3), kernel_init=start) for n in self.channels]
        self.hidden = nn.Dense(self.num_features, kernel_init=start)
        self.head = nn.Dense(self.num_classes, kernel_init=start)
        self.drop = nn.Dropout(self.dropout)

    def features(self, images: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        x = images - 0.5
        for index, convolution in enumerate(self.convolutions):
            x = nn.relu(convolution(x))
            if index + 1 < len(self.convolutions):
                x = nn.max_pool(x, (2, 2), (2, 2))
        # GELU: of ReLU features a third are zero for every image, and say nothing.
        return nn.gelu(self.hidden(x.reshape(len(x), -1)))

    def __call__(
        self, images: Float[Array, "B H W C"], deterministic: bool = True
    ) -> Float[Array, "B K"]:
        return self.head(self.drop(self.features(images), deterministic=deterministic))


def build(
    image_shape: Sequence[int],
    channels: Sequence[int],
    num_features: int,
    num_classes: int,
    dropout: float,
) -> Classifier:
    """Build the classifier of these sizes.

    Args:
        image_shape: (height, width, channels) of the images.
        channels: width of each convolution.
        num_features: size of the penultimate layer.
        num_classes: number of classes.
        dropout: share of the features dropped before the last layer while it is trained.

    Returns:
        The classifier; its parameters come from `init`.

    Raises:
        InputError: if the image cannot be halved between all convolutions.
    """
    image_shape = tuple(image_shape)
    if not channels or min(image_shape[:2]) < 2 ** (len(channels) - 1):
        raise InputError(
            f"a classifier with {len(channels)} convolutions does not fit images of {image_shape}; "
            "the image is halved between them, so set fewer channels"
        )
    network = _Network(
        channels=tuple(channels),
        num_features=num_features,
        num_classes=num_classes,
        dropout=dropout,
    )

    def init(key: Key[Array, ""]) -> Params:
        return network.init(key, jnp.zeros((1, *image_shape), jnp.float32))["params"]

    def features(params: Params, images: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        return network.bind({"params": params}).features(images)

    def logits(
        params: Params,
        images: Float[Array, "B H W C"],
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B K"]:
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        bound = network.bind({"params": params}, rngs=rngs)
        return bound(images, deterministic=dropout_key is None)

    return Classifier(
        # Lists, so that a config read back from JSON compares as equal.
        config={
            "name": "classifier",
            "image_shape": list(image_shape),
            "channels": list(channels),
            "num_features": num_features,
            "num_classes": num_classes,
            "dropout": dropout,
        },
        image_shape=image_shape,
        num_features=num_features,
        num_classes=num_classes,
        init=init,
        features=features,
        logits=logits,
    )
