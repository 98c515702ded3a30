"""What metrics see of a set of images: the outputs of a feature network, one row for each image.

Axes: N images, D features.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from jaxtyping import Shaped

from dimo_jax.evaluation.features.moments import Moments, sums

Images = Shaped[np.ndarray, "N ..."]


class Outputs:
    """The outputs of one set, by name; of images on disk they are a feature_store.FeatureStore."""

    def load(self, name: str) -> np.ndarray:
        """Return one output of all images."""
        raise NotImplementedError

    def parts(self, name: str) -> Iterator[np.ndarray]:
        """Yield the same in consecutive parts."""
        yield self.load(name)

    def moments(self, name: str) -> Moments:
        """Mean and covariance in float64."""
        return sums(self.load(name)).moments()

    def num(self, name: str) -> int | None:
        """Return of how many images the moments are; None where that is unknown."""
        return len(self.load(name))


class InMemory(Outputs):
    """Outputs of images in memory, each computed when it is first read.

    Args:
        images: the set.
        network: name of an output -> images to it.
        known: outputs that no network computes, such as "labels".
    """

    def __init__(
        self,
        images: Images,
        network: Mapping[str, Callable[[Images], np.ndarray]],
        **known: np.ndarray,
    ):
        self.images, self._network = images, network
        self._known, self._moments = dict(known), {}

    def load(self, name: str) -> np.ndarray:
        """Return one output of all images."""
        if name not in self._known:
            self._known[name] = self._network[name](self.images)
        return self._known[name]

    def moments(self, name: str) -> Moments:
        """Mean and covariance in float64."""
        if name not in self._moments:
            self._moments[name] = super().moments(name)
        return self._moments[name]
