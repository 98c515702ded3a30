"""The real images that the samples of a run are compared with, and what the samples are of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dimo_jax.conditions import labels, prompts
from dimo_jax.evaluation.features.classifier import FeatureNetwork
from dimo_jax.evaluation.features.outputs import InMemory

Images = Float[np.ndarray, "N H W C"]
Labels = Int[np.ndarray, "N"]


@dataclass(frozen=True)
class RealImages:
    """What samples are compared with.

    Attributes:
        train_images: float32 [N, H, W, C] in [0, 1]; the reference.
        train_labels: int [N].
        test_images: float32 [M, H, W, C]; the floor.
        test_labels: int [M].
        num_classes: number of classes.
        encode: images -> tokens int [N, L].
        codebook_size: number of codes.
        shares: of each class among the samples, in any unit; none: as many of each as can be.
        texts: of the test images, where samples are of these, in turn; none: they are of classes.
    """

    train_images: Float[np.ndarray, "N H W C"]
    train_labels: Int[np.ndarray, "N"]
    test_images: Float[np.ndarray, "M H W C"]
    test_labels: Int[np.ndarray, "M"]
    num_classes: int
    encode: Callable[[Images], Any]
    codebook_size: int
    shares: Sequence[int] = ()
    texts: tuple[str, ...] = ()

    def in_turn(self, num: int) -> Labels:
        """Return the numbers of the classes or texts that so many samples are of."""
        if self.texts:
            return prompts.in_turn(num, len(self.texts))
        return labels.in_turn(num, self.num_classes, self.shares)

    def classes(self, numbers: Labels) -> Labels:
        """Return the classes of what `in_turn` gave."""
        return self.test_labels[numbers] if self.texts else numbers

    def texts_of(self, numbers: Labels) -> list[str]:
        """Return the texts of what `in_turn` gave; none where it gave classes."""
        return [self.texts[number] for number in numbers.tolist()] if self.texts else []

    def pictured(self, numbers: Labels) -> Images:
        """Return the test images of some texts, or test images of some classes."""
        if self.texts:
            return self.test_images[numbers]
        return images_with_labels(self.test_images, self.test_labels, numbers)

    def outputs(self, network: FeatureNetwork, images: Images, labels: Labels) -> InMemory:
        """Return what metrics.of_outputs.of_classifier reads of some images."""
        functions = {
            "features": network.features,
            "predicted": network.predict,
            "tokens": lambda x: np.asarray(self.encode(x), np.int32),
        }
        return InMemory(images, functions, pixels=images, labels=labels)


def images_with_labels(
    images: Float[np.ndarray, "N H W C"],
    image_labels: Int[np.ndarray, "N"],
    labels: Int[np.ndarray, "M"],
) -> Float[np.ndarray, "M H W C"]:
    """Return for each label the next image of that class, in turn; again from the first if few.

    A black one for a class that has none.
    """
    of_class = {label: np.flatnonzero(image_labels == label) for label in set(labels.tolist())}
    seen = dict.fromkeys(of_class, 0)
    index = []
    for label in labels.tolist():
        some = of_class[label]
        index.append(some[seen[label] % len(some)] if len(some) else -1)
        seen[label] += 1
    found = images[index]  # a copy
    found[np.array(index) == -1] = 0
    return found
