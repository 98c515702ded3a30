"""Pictures into tokens: threads read and cut out while the devices encode what was there before.

P pictures of a batch, V views of each, S pixels along a side, C channels, L tokens.
"""

import collections
import functools
import itertools
import math
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, Int, UInt8

from dimo_jax.common import crops
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import format_seconds
from dimo_jax.common.resumable import Range
from dimo_jax.data.pictures import PictureSource
from dimo_jax.parallel import mesh
from dimo_jax.tokenizers.tokenizer import PIXELS_AT_ONCE, Tokenizer

# Of small images: more in a batch save no time, and a first batch is what a measurement takes.
MOST_AT_ONCE = 256
_THREADS = min(32, os.cpu_count() or 4)  # Pillow lets go of the interpreter's lock
Batch = tuple[Range, int, int]  # range, start and stop of the batch in it
_AHEAD = 2  # batches that are prepared beside the one that is encoded
_GRAY = np.array([19595, 38470, 7471], np.uint32)  # of 2^16: ITU-R 601, as Pillow rounds it


class Picture(NamedTuple):
    """What a picture has beside its pixels.

    Attributes:
        label: its class; 0 where pictures have none.
        text: its caption; empty where pictures have none.
        fault: why it cannot be used, or None.
    """

    label: int = 0
    text: str = ""
    fault: str | None = None


class Encoded(NamedTuple):
    """A batch: pictures [start, stop) of a range, and their tokens; those of a fault mean nothing.

    Attributes:
        part: the range.
        start: of the first picture.
        stop: of the last, and one.
        pictures: what they have.
        tokens: int32 [P, V, L].
    """

    part: Range
    start: int
    stop: int
    pictures: list[Picture]
    tokens: Int[np.ndarray, "P V L"]


class Speed(NamedTuple):
    """Seconds that a batch takes where nothing else runs, and its pictures."""

    host_seconds: float
    network_seconds: float
    pictures: int

    def describe(self, num: int) -> str:
        """Say what a batch takes, and estimate how long some pictures do."""
        # A network on a CPU takes the cores that prepare.
        both = (self.host_seconds, self.network_seconds)
        seconds = sum(both) if jax.default_backend() == "cpu" else max(both)
        return (
            f"a batch of {self.pictures} pictures takes {self.host_seconds:.3g} s to prepare and "
            f"{self.network_seconds:.3g} s to encode: about "
            f"{format_seconds(seconds / self.pictures * num)} for {num:,} pictures"
        )


class Encoder:
    """A tokenizer on all devices of this process, and how pictures are cut for it.

    A device always gets as many images at a time, so that tokens do not depend on how many devices
    or processes there are.

    Args:
        tokenizer: from tokenizers.build.
        params: its parameters.
        source: the pictures.
        cut: how they are cut; its image_size is the tokenizer's.
        views: V.
        batch_size: images of a device at a time; None: `images_at_once`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: Any,
        source: PictureSource,
        cut: crops.Settings,
        views: int = 1,
        batch_size: int | None = None,
    ):
        self._source, self._cut, self._views = source, cut, views
        self._shape = (views, *tokenizer.image_shape)
        self._images = (batch_size or images_at_once(tokenizer)) * jax.local_device_count()
        self.pictures = max(1, self._images // views)  # of a batch
        devices = mesh.of_this_process(self._images)
        self._spread = NamedSharding(devices, PartitionSpec("data"))
        self._params = jax.device_put(params, NamedSharding(devices, PartitionSpec()))
        self._tokenizer = tokenizer

    @functools.cached_property
    def _encode(self) -> Any:
        """The program, compiled but not run."""
        images = jax.ShapeDtypeStruct(
            (self._images, *self._shape[1:]), np.float32, sharding=self._spread
        )
        return jax.jit(self._tokenizer.encode).lower(self._params, images).compile()

    def run(self, parts: Iterable[Range]) -> Iterator[Encoded]:
        """Encode ranges of the pictures, batch by batch in their order.

        A batch has pictures of one range only.
        """
        batches = (
            (part, start, min(start + self.pictures, part[1]))
            for part in parts
            for start in range(*part, self.pictures)
        )
        with ThreadPoolExecutor(_THREADS) as pool:
            running = None
            try:
                for batch, futures in self._ahead(pool, batches):
                    pixels, pictures = zip(*(future.result() for future in futures), strict=True)
                    started = (*batch, list(pictures)), self._start(np.concatenate(pixels))
                    if running is not None:
                        yield self._fetch(*running)
                    running = started
                if running is not None:
                    yield self._fetch(*running)
            finally:
                pool.shutdown(cancel_futures=True)

    def measure(self) -> Speed:
        """Prepare and encode a batch, for its time."""
        num = min(self.pictures, self._source.num)
        with ThreadPoolExecutor(_THREADS) as pool:
            begun = time.perf_counter()
            pixels = [pixels for pixels, _ in pool.map(self._prepare, range(num))]
            host_seconds = time.perf_counter() - begun
        _ = self._encode  # compiled
        begun = time.perf_counter()
        jax.block_until_ready(self._start(np.concatenate(pixels)))
        return Speed(host_seconds, time.perf_counter() - begun, num)

    def _ahead(
        self, pool: ThreadPoolExecutor, batches: Iterator[Batch]
    ) -> Iterator[tuple[Batch, list[Future]]]:
        """Yield batches with their pictures, which are prepared while others are encoded."""

        def submit(batch: Batch) -> tuple[Batch, list[Future]]:
            return batch, [pool.submit(self._prepare, i) for i in range(*batch[1:])]

        waiting = collections.deque(map(submit, itertools.islice(batches, _AHEAD)))
        while waiting:
            waiting.extend(map(submit, itertools.islice(batches, 1)))
            yield waiting.popleft()

    def _prepare(self, index: int) -> tuple[Float[np.ndarray, "V S S C"], Picture]:
        """Read and cut a picture; zeros where it cannot be used."""
        source = self._source
        name = f"{source.where}: {source.name(index)}"
        try:
            pixels = source.read(index)
            views = crops.views(pixels, self._cut, index, self._views, name)
            label = source.label(index) if source.condition == "label" else 0
            text = source.text(index) if source.condition == "text" else ""
        except InputError as error:
            return np.zeros(self._shape, np.float32), Picture(fault=str(error))
        return to_images(views, self._shape[-1]), Picture(label, text)

    def _start(self, images: Float[np.ndarray, "N S S C"]) -> list[jax.Array]:
        """Begin to encode images, in calls of as many; returns before that is done."""
        calls = math.ceil(len(images) / self._images)
        rest = calls * self._images - len(images)
        filled = np.pad(images, ((0, rest), (0, 0), (0, 0), (0, 0)))
        return [
            self._encode(self._params, jax.device_put(some, self._spread))
            for some in np.split(filled, calls)
        ]

    def _fetch(self, batch: tuple[Range, int, int, list[Picture]], tokens: Any) -> Encoded:
        part, start, stop, pictures = batch
        found = np.concatenate(jax.device_get(tokens))[: (stop - start) * self._views]
        tokens = found.reshape(stop - start, self._views, self._tokenizer.num_tokens)
        return Encoded(part, start, stop, pictures, tokens)


def images_at_once(tokenizer: Tokenizer) -> int:
    """Return how many images a device encodes at a time: 16 of 256 x 256."""
    pixels = math.prod(tokenizer.image_shape[:2])
    return min(MOST_AT_ONCE, max(1, PIXELS_AT_ONCE // pixels))


def to_images(pixels: UInt8[np.ndarray, "V S S 3"], channels: int) -> Float[np.ndarray, "V S S C"]:
    """Return RGB in [0, 1]; in one channel as Pillow's "L", where gray stays what it was."""
    if channels == 1:
        gray = (pixels.astype(np.uint32) @ _GRAY + (1 << 15)) >> 16
        pixels = gray.astype(np.uint8)[..., None]
    # Here and not on the device, where XLA (jax 0.10) multiplies by a rounded 1 / 255, which gives
    # half of all levels other values than the data sets have.
    return pixels.astype(np.float32) / np.float32(255)
