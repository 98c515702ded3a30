"""Features of texts and images from CLIP: unit vectors of float32, in batches of one size.

Axes: N examples, P projection, S pixels along a side, C ids of a text.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float
from PIL import Image

from dimo_jax import bundles
from dimo_jax.common import pictures
from dimo_jax.common.errors import InputError
from dimo_jax.conditions import clip_tokenizer
from dimo_jax.conditions.clip_tokenizer import ClipTokenizer
from dimo_jax.models.clip import Clip
from dimo_jax.parallel import mesh

_THREADS = 8  # Pillow lets go of the interpreter's lock while it decodes and resizes

Picture = Image.Image | Path
# (an image, pixels along a side) -> float32 [S, S, 3] for the image tower.
Prepare = Callable[[Image.Image, int], np.ndarray]


class ClipFeatures:
    """Both towers with their parameters on this process's devices.

    Args:
        network: with an image tower.
        params: its parameters.
        tokenizer: the one of its text tower.
        batch_size: examples in one call. A smaller rest is filled up to it; a batch is spread over
            the devices where they divide it.

    Attributes:
        tokenizer: as given.

    Raises:
        InputError: the network has no image tower.
    """

    def __init__(self, network: Clip, params: Any, tokenizer: ClipTokenizer, batch_size: int = 64):
        encode_image = network.encode_image
        if encode_image is None:
            raise InputError("this CLIP has a text tower alone; a score needs both")
        devices = mesh.of_this_process(batch_size)
        self._spread = NamedSharding(devices, PartitionSpec("data"))
        self._params = jax.device_put(params, NamedSharding(devices, PartitionSpec()))
        self.tokenizer, self._batch_size = tokenizer, batch_size
        self._size = network.image_size

        def unit(x: jax.Array) -> jax.Array:
            x = x.astype(jnp.float32)
            return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

        self._text = jax.jit(lambda p, x: unit(network.encode_text(p, x)["projected"]))
        self._image = jax.jit(lambda p, x: unit(encode_image(p, x)["projected"]))

    def texts(self, texts: Sequence[str], prefix: str = "") -> Float[np.ndarray, "N P"]:
        """Return unit vectors of texts.

        Args:
            texts: prompts of any length.
            prefix: as ClipTokenizer's.
        """
        return self._run(self._text, self.tokenizer(texts, prefix))

    def images(self, images: Iterable[Picture], prepare: Prepare) -> Float[np.ndarray, "N P"]:
        """Return unit vectors of images.

        Args:
            images: of any sizes, or their files; a generator is read as batches are needed.
            prepare: one of evaluation.clip_images.

        Raises:
            InputError: a file is no image, or one that `prepare` refuses.
        """

        def pixels(image: Picture) -> np.ndarray:
            if not isinstance(image, Path):
                return prepare(image, self._size)
            opened = pictures.read_image(image)
            try:
                return prepare(opened, self._size)
            except InputError as error:
                raise InputError(f"{image}: {error}") from error

        return self._run(self._image, _in_threads(pixels, images))

    def _run(self, encode: Callable, rows: Iterable[np.ndarray]) -> Float[np.ndarray, "N P"]:
        parts, running = [], None
        rows = iter(rows)
        while some := list(itertools.islice(rows, self._batch_size)):
            batch = np.stack(some)
            rest = [(0, self._batch_size - len(some))] + [(0, 0)] * (batch.ndim - 1)
            batch = np.pad(batch, rest, mode="edge")
            started = encode(self._params, jax.device_put(batch, self._spread))
            # The call returns before it is done: the batch before it is fetched meanwhile.
            if running is not None:
                parts.append(jax.device_get(running[0])[: running[1]])
            running = started, len(some)
        if running is None:
            raise InputError("there is nothing to score; give at least one image and one prompt")
        parts.append(jax.device_get(running[0])[: running[1]])
        return np.concatenate(parts)


def _in_threads(work: Callable, items: Iterable) -> Iterator[np.ndarray]:
    """work(item) in order, some items ahead, without reading all of them first."""
    items = iter(items)
    with ThreadPoolExecutor(_THREADS) as pool:
        ahead = [pool.submit(work, item) for item in itertools.islice(items, 2 * _THREADS)]
        while ahead:
            done = ahead.pop(0).result()
            ahead += [pool.submit(work, item) for item in itertools.islice(items, 1)]
            yield done


def load(path: str | Path, batch_size: int = 64) -> tuple[ClipFeatures, bundles.Bundle]:
    """Return the towers of a bundle of the kind "clip".

    Args:
        path: the bundle's folder, of `python -m dimo_jax.convert --source=clip`.
        batch_size: see ClipFeatures.

    Returns:
        (features, the bundle, whose params_hash goes into a result).

    Raises:
        InputError: it is no such bundle, has no vocabulary or no image tower.
    """
    bundle = bundles.load(path, kind="clip")
    network = bundle.build()
    # The published scores are of open_clip's ids, whosever files the weights are.
    tokenizer = clip_tokenizer.open_clip(
        clip_tokenizer.merges_of(bundle.attachments, bundle.path), network.context
    )
    return ClipFeatures(network, bundle.params, tokenizer, batch_size), bundle
