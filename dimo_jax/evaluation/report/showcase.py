"""What people look at beside the figures: samples, the worst and best of them, real neighbours.

Everything is taken from a set while its images are at hand; `write` makes pictures of it and the
entries of results.json that the pages read. N samples, D features.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from dimo_jax.common import images
from dimo_jax.evaluation.images.image_set import ImageSet
from dimo_jax.evaluation.metrics import neighbours

COLUMNS, ROWS = 8, 3  # of a grid of samples
NUM_EXTREMES = 10
NUM_CLASSES = 10  # at either end of the order, where there are more than twice as many
THUMBNAIL_PIXELS = 128
# Distances of features: above that many pairs they would take longer than the figures did.
MAX_PAIRS = 2_000_000_000
NEAREST = "distance in the features of Inception to the nearest real image of the reference"
CLASS_METRIC = "nearest_real"


class Tile(NamedTuple):
    """One sample at an end of the order, and the real image it is nearest to, if that is there."""

    image: UInt8[np.ndarray, "H W 3"]
    nearest: UInt8[np.ndarray, "H W 3"] | None
    distance: float
    label: int | None


class Look(NamedTuple):
    """One set of samples.

    Attributes:
        model: of the row.
        steps: of the row.
        seed: of the samples, None where that is unknown.
        labels: of the first samples, None where they are unknown.
        first: the first samples, small.
        neighbours: the real image nearest to each of the first COLUMNS samples.
        worst: farthest from any real image, the farthest first.
        best: the nearest first.
        by_class: mean distance of each class, by label.
    """

    model: str
    steps: int
    seed: int | None
    labels: Int[np.ndarray, "n"] | None
    first: UInt8[np.ndarray, "n H W 3"]
    neighbours: UInt8[np.ndarray, "m H W 3"] | None = None
    worst: Sequence[Tile] = ()
    best: Sequence[Tile] = ()
    by_class: Mapping[int, float] | None = None


def look(
    row: Mapping[str, Any],
    samples: ImageSet,
    features: Float[np.ndarray, "N D"],
    real_features: Float[np.ndarray, "M D"] | None,
    real: ImageSet | None,
) -> Look:
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
    result = Look(
        row["model"],
        row["steps"],
        row.get("seed"),
        None if labels is None else labels[:num],
        _thumbnails(samples.read(0, num).pixels),
    )
    if real_features is None or len(features) * len(real_features) > MAX_PAIRS:
        return result
    places, distances = neighbours.nearest(features, real_features)
    height, width = result.first.shape[1:3]

    def beside(place: Any) -> UInt8[np.ndarray, "H W 3"]:
        pixels = real.read(int(place), int(place) + 1).pixels
        return _resized(pixels, (width, height))[0]

    def tile(index: Any) -> Tile:
        index = int(index)
        return Tile(
            _thumbnails(samples.read(index, index + 1).pixels)[0],
            None if real is None else beside(places[index]),
            float(distances[index]),
            None if labels is None else int(labels[index]),
        )

    order = np.argsort(distances, kind="stable")
    ends = min(NUM_EXTREMES, len(order) // 2)
    by_class = None
    if labels is not None:
        by_class = {int(x): float(distances[labels == x].mean()) for x in np.unique(labels)}
    shown = None
    if real is not None:
        shown = np.stack([beside(place) for place in places[: min(COLUMNS, num)]])
    return result._replace(
        neighbours=shown,
        worst=[tile(index) for index in order[::-1][:ends]],
        best=[tile(index) for index in order[:ends]],
        by_class=by_class,
    )


def write(folder: Path, looks: Sequence[Look]) -> dict[str, Any]:
    """Write FOLDER/pictures/*.png.

    Args:
        folder: of the results.
        looks: one for each model and number of steps; the first generator's ends of the order are
            shown, else those of the first set.

    Returns:
        The entries "pictures", "extremes" and "per_class" of results.json, those that there are.
    """
    entries, found = [], {}
    for one in looks:
        name = f"{one.model}_{one.steps:02d}_steps" if one.steps else one.model
        entry = {"kind": "samples", "model": one.model, "steps": one.steps, "seed": one.seed}
        if one.labels is not None:
            entry["labels"] = one.labels.tolist()
        entries.append(_save(folder, name, one.first, COLUMNS, None, **entry))
    chosen = next((one for one in looks if one.model == "generator"), looks[0])
    if chosen.neighbours is not None:
        pairs = np.concatenate([chosen.first[: len(chosen.neighbours)], chosen.neighbours])
        texts, columns = [chosen.model, "nearest"], len(chosen.neighbours)
        entries.append(_save(folder, "neighbours", pairs, columns, texts, kind="neighbours"))
    if chosen.worst:
        found["extremes"] = {"model": chosen.model, "by": NEAREST}
        for kind in ("worst", "best"):
            tiles: Sequence[Tile] = getattr(chosen, kind)
            group = [tile.image for tile in tiles]
            group += [tile.nearest for tile in tiles if tile.nearest is not None]
            entries.append(_save(folder, kind, np.stack(group), len(tiles), None, kind=kind))
            found["extremes"][kind] = [_extreme(tile) for tile in tiles]
    if per_class := _per_class(looks, chosen):
        found["per_class"] = per_class
    return {"pictures": entries, **found}


def _extreme(tile: Tile) -> dict[str, Any]:
    label = {} if tile.label is None else {"label": tile.label}
    return {**label, "value": tile.distance}


def _per_class(looks: Sequence[Look], chosen: Look) -> dict[str, Any]:
    if not chosen.by_class:
        return {}
    classes = sorted(chosen.by_class, key=chosen.by_class.__getitem__)
    if len(classes) > 2 * NUM_CLASSES:
        classes = [*classes[:NUM_CLASSES], *classes[-NUM_CLASSES:]]
    rows = [
        {
            "model": one.model,
            "steps": one.steps,
            "metrics": {CLASS_METRIC: [one.by_class.get(label) for label in classes]},
        }
        for one in looks
        if one.by_class
    ]
    about = f"mean {NEAREST}; of {len(chosen.by_class)} classes those nearest and farthest"
    return {"names": [str(x) for x in classes], "metrics": {CLASS_METRIC: about}, "rows": rows}


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
    return np.stack([np.asarray(Image.fromarray(x).resize(size, Image.LANCZOS)) for x in pixels])


def _save(
    folder: Path,
    name: str,
    group: UInt8[np.ndarray, "n H W 3"],
    columns: int,
    row_labels: Sequence[str] | None,
    **entry: Any,
) -> dict[str, Any]:
    file = f"pictures/{name}.png"
    images.save_png(folder / file, images.grid(group, columns, row_labels))
    return {"file": file, **entry, "columns": columns}
