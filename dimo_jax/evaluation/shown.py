"""What people see beside the figures: samples, the worst and best of them, real neighbours.

Everything is taken from a set while its images are at hand. N samples, D features.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from dimo_jax.evaluation.evaluate_images import Evaluator
from dimo_jax.evaluation.images.image_set import ImageSet
from dimo_jax.evaluation.metrics import neighbours
from dimo_jax.evaluation.metrics.rows import Row

COLUMNS, ROWS = 8, 3  # of a grid of samples
NUM_EXTREMES = 10  # samples at either end
THUMBNAIL_PIXELS = 128
# Distances of features: above that many pairs they would take longer than the figures did.
MAX_PAIRS = 2_000_000_000


class Tile(NamedTuple):
    """One sample at an end of the order.

    Attributes:
        image: the sample.
        nearest: the real image that its distance is to, where that is at hand.
        distance: see `Shown.by`.
        label: the class that was requested, where that is known.
        predicted: the class that a classifier sees, where there is one.
    """

    image: UInt8[np.ndarray, "H W C"]
    nearest: UInt8[np.ndarray, "H W C"] | None
    distance: float
    label: int | None
    predicted: int | None = None


class Shown(NamedTuple):
    """One set of samples.

    Attributes:
        model: of the row.
        steps: of the row.
        seed: of the samples, None where that is unknown.
        labels: of the first samples, None where they are unknown.
        first: the first samples, small.
        neighbours: the real image nearest to each of as many of the first samples.
        originals: of as many the picture that each was made from, where they were.
        worst: farthest from any real image, the farthest first.
        best: the nearest first.
        by_class: mean distance of each class, by label.
        texts: that the first samples are of, where they are of texts.
    """

    model: str
    steps: int
    seed: int | None
    labels: Int[np.ndarray, "n"] | None
    first: UInt8[np.ndarray, "n H W C"]
    neighbours: UInt8[np.ndarray, "m H W C"] | None = None
    worst: Sequence[Tile] = ()
    best: Sequence[Tile] = ()
    originals: UInt8[np.ndarray, "m H W C"] | None = None
    by_class: Mapping[int, float] | None = None
    texts: Sequence[str] = ()


def ends(
    distances: Float[np.ndarray, "N"], tile: Callable[[int], Tile]
) -> tuple[list[Tile], list[Tile]]:
    """Return the worst and the best samples; no sample is in both.

    Args:
        distances: of all samples; those that are not finite are left out, and of equal ones the
            earlier sample counts as the nearer one.
        tile: index -> what is shown.
    """
    known = np.flatnonzero(np.isfinite(distances))
    number = min(NUM_EXTREMES, len(known) // 2)
    rising = known[np.argsort(distances[known], kind="stable")]
    worst, best = ([tile(int(i)) for i in order[:number]] for order in (rising[::-1], rising))
    return worst, best


def of_set(evaluator: Evaluator, images: ImageSet, row: Row, role: str = "samples") -> Shown:
    """Take what is shown from a set that was evaluated: its features are kept, none is computed.

    Args:
        evaluator: of the set.
        images: the set.
        row: its result.
        role: its name among the kept features.
    """
    real, features = evaluator.reference.images, evaluator.reference.features
    if features is None and real is not None and "prdc" in evaluator.metrics:
        features = evaluator.outputs(real, "reference").load("2048")
    return take(row, images, evaluator.outputs(images, role).load("2048"), features, real)


def take(
    row: Row,
    samples: ImageSet,
    features: Float[np.ndarray, "N D"],
    real_features: Float[np.ndarray, "M D"] | None,
    real: ImageSet | None,
) -> Shown:
    """Take from a set what is shown of it.

    Args:
        row: of the result.
        samples: the set.
        features: of all of its images.
        real_features: of the reference's real images; None where it has none.
        real: those images, in the same order; None where there are only their features.

    Returns:
        What there is; distances are left out without real features.
    """
    num = min(COLUMNS * ROWS, samples.num)
    labels = None if samples.labels is None else np.asarray(samples.labels)
    result = Shown(
        row.model,
        row.steps,
        row.rest.get("seed"),
        None if labels is None else labels[:num],
        _thumbnails(samples.read(0, num).pixels),
    )
    height, width = result.first.shape[1:3]

    def beside(images: ImageSet, place: Any) -> UInt8[np.ndarray, "H W 3"]:
        pixels = images.read(int(place), int(place) + 1).pixels
        return _resized(pixels, (width, height))[0]

    if real is not None and samples.pairs_with(real):
        result = result._replace(originals=np.stack([beside(real, i) for i in range(num)]))
    if real_features is None or len(features) * len(real_features) > MAX_PAIRS:
        return result
    places, distances = neighbours.nearest(features, real_features)

    def tile(index: int) -> Tile:
        return Tile(
            _thumbnails(samples.read(index, index + 1).pixels)[0],
            None if real is None else beside(real, places[index]),
            float(distances[index]),
            None if labels is None else int(labels[index]),
        )

    by_class = None
    if labels is not None:
        by_class = {int(x): float(distances[labels == x].mean()) for x in np.unique(labels)}
    shown = None
    if real is not None:
        shown = np.stack([beside(real, place) for place in places[: min(COLUMNS, num)]])
    worst, best = ends(distances, tile)
    return result._replace(neighbours=shown, worst=worst, best=best, by_class=by_class)


def _thumbnails(pixels: UInt8[np.ndarray, "N H W 3"]) -> UInt8[np.ndarray, "N h w 3"]:
    """Return the images, shrunk where they are larger than a page can show."""
    height, width = pixels.shape[1:3]
    if max(height, width) <= THUMBNAIL_PIXELS:
        return pixels
    scale = THUMBNAIL_PIXELS / max(height, width)
    return _resized(pixels, (max(1, round(width * scale)), max(1, round(height * scale))))


def _resized(
    pixels: UInt8[np.ndarray, "N H W 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "N h w 3"]:
    if pixels.shape[2:0:-1] == size:
        return pixels
    return np.stack(
        [np.asarray(Image.fromarray(x).resize(size, Image.Resampling.LANCZOS)) for x in pixels]
    )
