"""Objects in pictures by Mask2Former, as mmdet 2.x finds them: boxes, scores and masks.

Axes: B batch, H height, W width, Q queries.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, UInt8

from dimo_jax.evaluation.features.resize import opencv_bilinear
from dimo_jax.models.mask2former import STRIDE, Detector
from dimo_jax.models.swin import PATCH
from dimo_jax.parallel import mesh

# Pixels of the longer and of the shorter side at most, one of which a picture is resized to.
LONGER, SHORTER = 1333, 800
# Of RGB in 0..255; pictures are padded with gray before they are normalised.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
PADDING = 128
MOST = 100  # pairs of a query and a class that become objects

Size = tuple[int, int]  # height and width


class Found(NamedTuple):
    """One object.

    Attributes:
        label: its class.
        score: probability of the class times the mean certainty of the mask's pixels.
        box: left, top, right and bottom in pixels, the last two behind the object's last pixel.
        mask: its pixels.
    """

    label: int
    score: float
    box: tuple[int, int, int, int]
    mask: Bool[np.ndarray, "H W"]


class Objects(NamedTuple):
    """What is in one picture.

    Attributes:
        found: objects over the threshold, in the order of their classes' probabilities.
        surest: the highest probability of a class, whether over the threshold or not.
    """

    found: list[Found]
    surest: float


class ObjectDetector:
    """The network with its parameters on this process's devices.

    Args:
        network: of models.mask2former.
        params: its parameters.
        batch_size: pictures in one call; a smaller rest is filled up to it. A batch is spread over
            the devices where they divide it. A picture takes about 0.3 GB.
        note: is given a sentence before each compilation, one for each size of pictures.
    """

    def __init__(
        self,
        network: Detector,
        params: Any,
        batch_size: int = 1,
        note: Callable[[str], None] = lambda text: None,
    ):
        devices = mesh.of_this_process(batch_size)
        self._spread = NamedSharding(devices, PartitionSpec("data"))
        self._params = jax.device_put(params, NamedSharding(devices, PartitionSpec()))
        self._batch_size, self._note = batch_size, note
        self._sizes: set[Size] = set()
        self._classes = network.config["num_classes"]

        def detect(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            pixels = images.astype(jnp.float32) - jnp.asarray(MEAN)[None, None, None]
            classes, masks = network.apply(params, pixels / jnp.asarray(STD)[None, None, None])
            # Over queries and classes together: a query may be of several classes.
            pairs = jax.nn.softmax(classes)[..., :-1].reshape(len(images), -1)
            return *jax.lax.top_k(pairs, min(MOST, pairs.shape[1])), masks

        self._detect = jax.jit(detect)

    def __call__(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], thresholds: Sequence[float]
    ) -> list[Objects]:
        """Return the objects of pictures of any sizes.

        Args:
            images: RGB.
            thresholds: of each picture; objects of that score or less are left out.
        """
        by_size: dict[Size, list[int]] = {}
        sizes = [fitted((image.shape[0], image.shape[1])) for image in images]
        for i, size in enumerate(sizes):
            by_size.setdefault(_padded(size), []).append(i)
        result: dict[int, Objects] = {}
        running: tuple[list[int], Any] = ([], None)
        for size, every in by_size.items():
            if size not in self._sizes:
                self._sizes.add(size)
                self._note(f"compiles for pictures of {size[1]}x{size[0]} pixels after resizing")
            for start in range(0, len(every), self._batch_size):
                some = every[start : start + self._batch_size]
                batch = np.full((self._batch_size, *size, 3), PADDING, np.uint8)
                for image, i in zip(batch, some, strict=False):
                    height, width = sizes[i]
                    image[:height, :width] = opencv_bilinear(images[i], height, width)
                started = self._detect(self._params, jax.device_put(batch, self._spread))
                # The call returns before it is done: the batch before it is finished meanwhile.
                result |= self._finish(*running, images, sizes, thresholds)
                running = some, started
        result |= self._finish(*running, images, sizes, thresholds)
        return [result[i] for i in range(len(images))]

    def _finish(
        self,
        some: Sequence[int],
        outputs: Any,
        images: Sequence[np.ndarray],
        sizes: Sequence[Size],
        thresholds: Sequence[float],
    ) -> dict[int, Objects]:
        result = {}
        for row, i in enumerate(some):
            probs, pairs, masks = (np.asarray(x[row]) for x in outputs)
            size = (images[i].shape[0], images[i].shape[1])
            found = objects(probs, pairs, masks, self._classes, sizes[i], size, thresholds[i])
            result[i] = Objects(found, float(probs[0]))
        return result


def fitted(size: Size) -> Size:
    """Return the height and width that a picture of `size` is resized to.

    Source: mmcv's rescale_size, rounded half up.
    """
    scale = min(LONGER / max(size), SHORTER / min(size))
    # A side of nothing is one pixel.
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def objects(
    probs: Float[np.ndarray, "N"],
    pairs: np.ndarray,
    masks: Float[np.ndarray, "Q _ _"],
    num_classes: int,
    fitted_size: Size,
    size: Size,
    threshold: float,
) -> list[Found]:
    """Return the objects over a threshold.

    Args:
        probs: the highest ones of a query's class.
        pairs: query * num_classes + class of each.
        masks: logits at a quarter of the padded picture's size.
        num_classes: without "no object".
        fitted_size: of the picture in the network.
        size: of the picture itself.
        threshold: a score.

    Source: mmdet 2.28's instance post-processing; there is no suppression of overlaps.
    """
    rows, columns = (
        resizing(length, (PATCH * length, fits), new)
        for length, fits, new in zip(masks.shape[1:], fitted_size, size, strict=True)
    )
    known: dict[int, tuple[np.ndarray, float]] = {}
    found = []
    # A score is less than its probability: the masks of all others need not be made.
    for prob, pair in zip(probs[probs > threshold], pairs, strict=False):
        query, label = divmod(int(pair), num_classes)
        if query not in known:
            known[query] = _mask(rows @ masks[query] @ columns.T)
        mask, certainty = known[query]
        score = float(np.float32(prob) * np.float32(certainty))
        if score > threshold:
            found.append(Found(label, score, _box(mask), mask))
    return found


def _mask(logits: Float[np.ndarray, "H W"]) -> tuple[Bool[np.ndarray, "H W"], float]:
    """Return the pixels of a mask, and their mean certainty."""
    mask = logits > 0
    certainty = 1 / (1 + np.exp(-logits[mask]))
    return mask, float(certainty.sum(dtype=np.float64) / (mask.sum() + 1e-6))


def _box(mask: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """Return the box around a mask; zeros where it is empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return (0, 0, 0, 0)
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def resizing(old: int, between: tuple[int, int], new: int) -> Float[np.ndarray, "{new} {old}"]:
    """Return the matrix of two bilinear resizes along one axis, with a cut between them.

    Args:
        old: length at first.
        between: length after the first resize, and what of it is kept.
        new: length at last.
    """
    enlarged, kept = between
    first, second = _bilinear(old, enlarged)[:kept], _bilinear(kept, new)
    return (second @ first).astype(np.float32)


def _bilinear(old: int, new: int) -> Float[np.ndarray, "{new} {old}"]:
    """Return the matrix of PyTorch's bilinear interpolation with align_corners off."""
    # In float32, as there.
    place = np.float32(old / new) * (np.arange(new, dtype=np.float32) + np.float32(0.5))
    place = np.maximum(place - np.float32(0.5), 0)
    left = np.minimum(place.astype(np.int64), old - 1)
    share, rows, matrix = place - left, np.arange(new), np.zeros((new, old))
    np.add.at(matrix, (rows, left), 1 - share)
    np.add.at(matrix, (rows, np.minimum(left + 1, old - 1)), share)
    return matrix


def _padded(size: Size) -> Size:
    height, width = (-(-length // STRIDE) * STRIDE for length in size)
    return height, width
