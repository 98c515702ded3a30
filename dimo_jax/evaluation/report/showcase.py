"""Samples, the worst and best of them and real neighbours, as PNG files beside results.json."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from dimo_jax.common import images
from dimo_jax.common.files import AnyPath
from dimo_jax.evaluation.metrics import names
from dimo_jax.evaluation.metrics.rows import Row, Value
from dimo_jax.evaluation.report.schema import Classes, Extreme, Extremes, Picture
from dimo_jax.evaluation.shown import COLUMNS, Shown

NUM_CLASSES = 10  # at either end of the order, where there are more than twice as many
NEAREST = "distance in the features of Inception to the nearest real image of the reference"
CLASS_METRIC = "nearest_real"


class Drawn(NamedTuple):
    """The pictures, and how results.json speaks of them and of what they show."""

    pictures: list[tuple[Picture, UInt8[np.ndarray, "H W 3"]]]
    extremes: Extremes

    @property
    def entries(self) -> list[Picture]:
        """Without the pixels."""
        return [entry for entry, _ in self.pictures]

    def save(self, folder: AnyPath) -> list[AnyPath]:
        """Write FOLDER/pictures/*.png; return the paths."""
        return [images.save_png(folder / entry.file, pixels) for entry, pixels in self.pictures]


def draw(
    shown: Sequence[Shown],
    columns: int = COLUMNS,
    by: str = NEAREST,
    overview: bool = False,
    class_names: Sequence[str] = (),
) -> Drawn:
    """Draw the grids of an evaluation.

    Args:
        shown: one for each model and number of steps; the first generator's ends of the order are
            shown, else those of the first set.
        columns: samples in a row.
        by: what the worst and the best are ordered by.
        overview: whether a further picture holds the first row of each.
        class_names: of the labels; their numbers where there are none.
    """
    found, named = [], dict(enumerate(class_names))

    def add(
        name: str,
        group: UInt8[np.ndarray, "n H W C"],
        columns: int,
        row_labels: Sequence[str] | None = None,
        **entry: Any,
    ) -> None:
        picture = Picture(f"pictures/{name}.png", columns=columns, **entry)
        found.append((picture, images.grid(group, columns, row_labels)))

    for one in shown:
        known = [] if one.labels is None else [named.get(x, x) for x in one.labels.tolist()]
        labels = list(one.texts) or known
        about = {"model": one.model, "steps": one.steps, "seed": one.seed, "labels": labels}
        add(file_name(one), one.first, columns, kind="samples", **about)
    if overview:
        titles = [names.title(one.model, one.steps) for one in shown]
        add("all", np.concatenate([x.first[:columns] for x in shown]), columns, titles, kind="all")
    chosen = chosen_of(shown)
    beside = {"neighbours": (chosen.neighbours, "nearest"), "originals": (chosen.originals, "from")}
    for kind, (group, text) in beside.items():
        if group is not None:
            width = min(columns, len(group))
            pairs = _in_turns(chosen.first, group, width)
            texts = [chosen.model, text] * (len(pairs) // (2 * width))
            add(kind, pairs, width, texts, kind=kind)
    for kind, end in (("worst", chosen.worst), ("best", chosen.best)):
        if end:
            group = [x.image for x in end] + [x.nearest for x in end if x.nearest is not None]
            add(kind, np.stack(group), len(end), kind=kind)

    def name(label: int | None) -> Any:
        return label if label is None else named.get(label, label)

    sides = (
        [Extreme(name(x.label), name(x.predicted), x.distance) for x in end]
        for end in (chosen.worst, chosen.best)
    )
    return Drawn(found, Extremes(by, chosen.model, *sides) if chosen.worst else Extremes())


def file_name(shown: Shown) -> str:
    """Return the name of a set's picture, without its suffix."""
    in_steps = shown.model == "teacher" or shown.steps > 1
    return f"{shown.model}_{shown.steps:02d}_steps" if in_steps else shown.model


def chosen_of(shown: Sequence[Shown]) -> Shown:
    """Return the set whose ends are shown: the first generator's, else the first."""
    return next((one for one in shown if one.model == "generator"), shown[0])


def nearest_by_class(shown: Sequence[Shown], class_names: Sequence[str] = ()) -> Classes:
    """Return the mean distance to real images class by class, of many classes both ends.

    Args:
        shown: one for each model and number of steps.
        class_names: of the labels; their numbers where there are none.
    """
    chosen = chosen_of(shown)
    if not chosen.by_class:
        return Classes()
    classes = sorted(chosen.by_class, key=chosen.by_class.__getitem__)
    if len(classes) > 2 * NUM_CLASSES:
        classes = [*classes[:NUM_CLASSES], *classes[-NUM_CLASSES:]]
    rows = []
    for one in shown:
        if not (found := one.by_class):
            continue
        values = [Value(found[label]) if label in found else None for label in classes]
        rows.append(Row(one.model, one.steps, {}, per_class={CLASS_METRIC: values}))
    about = f"mean {NEAREST}; of {len(chosen.by_class)} classes those nearest and farthest"
    named = dict(enumerate(class_names))
    return Classes(rows, [named.get(x, str(x)) for x in classes], metrics={CLASS_METRIC: about})


def _in_turns(
    above: UInt8[np.ndarray, "n H W C"], below: UInt8[np.ndarray, "m H W C"], columns: int
) -> UInt8[np.ndarray, "k H W C"]:
    """Rows of `above` and `below` in turns, each of `columns` images; a rest is dropped."""
    parts = []
    for start in range(0, len(below) - columns + 1, columns):
        parts += [above[start : start + columns], below[start : start + columns]]
    return np.concatenate(parts)
