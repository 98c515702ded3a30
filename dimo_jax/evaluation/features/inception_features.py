"""Features of images from Inception: uint8 in, float32 out, in batches of one size.

Axes: N images, H height, W width, D features.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8

from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.features import resize
from dimo_jax.models.inception import OUTPUTS, Inception
from dimo_jax.parallel import mesh

# What is done on the host; on the device TensorFlow's bilinear follows, which leaves images alone
# that have the wanted size already.
RESIZERS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "tf1_bilinear": lambda images: images,
    "clean_bicubic": resize.clean_bicubic,
    "clean_bicubic_uint8": partial(resize.clean_bicubic, quantized=True),
}


class InceptionFeatures:
    """The network with its parameters on this process's devices.

    Args:
        network: of models.inception.
        params: its parameters.
        outputs: which of models.inception.OUTPUTS are wanted.
        resizer: a key of RESIZERS.
        batch_size: images in one call. A smaller rest is filled up to it, so there is one
            compilation for each size of images; a batch is spread over the devices where they
            divide it. The largest arrays take about 10 MB for an image.

    Raises:
        InputError: an unknown output or resizer.
    """

    def __init__(
        self,
        network: Inception,
        params: Any,
        outputs: Sequence[str] = ("2048",),
        resizer: str = "tf1_bilinear",
        batch_size: int = 64,
    ):
        wrong = [name for name in outputs if name not in OUTPUTS]
        if wrong or resizer not in RESIZERS:
            raise InputError(
                f"there is no output {wrong} or no resizer {resizer!r} of Inception; outputs are "
                f"{', '.join(OUTPUTS)}, resizers {', '.join(RESIZERS)}"
            )
        devices = mesh.of_this_process(batch_size)
        self.spread = NamedSharding(devices, PartitionSpec("data"))
        self.params = jax.device_put(params, NamedSharding(devices, PartitionSpec()))
        self._prepare, self._batch_size = RESIZERS[resizer], batch_size

        def features(params: Any, images: jax.Array) -> dict[str, jax.Array]:
            found = network.apply(params, resize.tf1_bilinear(images))
            return {name: found[name] for name in outputs}

        self._features = jax.jit(features)

    def __call__(self, images: UInt8[np.ndarray, "N H W C"]) -> dict[str, Float[np.ndarray, "N _"]]:
        """Return the outputs of any number of images of one size.

        Args:
            images: RGB.

        Returns:
            {output: float32 [N, D]}, in the order of the images.

        Raises:
            InputError: there is no image, or they are not RGB.
        """
        if not len(images) or images.shape[-1] != 3:
            raise InputError(
                f"images are {images.shape}, expected at least one of three channels; give RGB"
            )
        parts, running = [], None
        for start in range(0, len(images), self._batch_size):
            batch = self._prepare(images[start : start + self._batch_size])
            rest = self._batch_size - len(batch)
            batch = np.pad(batch, ((0, rest), (0, 0), (0, 0), (0, 0)))
            started = self._features(self.params, jax.device_put(batch, self.spread))
            # The call returns before it is done: the batch before it is fetched meanwhile.
            if running is not None:
                parts.append(jax.device_get(running))
            running = started
        parts.append(jax.device_get(running))
        return {k: np.concatenate([part[k] for part in parts])[: len(images)] for k in parts[0]}
