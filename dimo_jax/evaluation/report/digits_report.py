"""An evaluation as files: results.json for programs, report.md and PNG pictures for people."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from dimo_jax.common import files, readers, versions
from dimo_jax.common import images as pictures
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath, write_file
from dimo_jax.evaluation import protocol
from dimo_jax.evaluation.metrics import by_class
from dimo_jax.evaluation.metrics import names as metric_names
from dimo_jax.evaluation.metrics.by_class import Extreme, Extremes
from dimo_jax.evaluation.protocol import Evaluation

PROVENANCE = ("seed", "versions", "device", "wall_seconds", "hashes")
MAX_COLUMNS = 20
PROTOCOL = "digits"


def environment() -> dict[str, Any]:
    """Versions of Python and the packages that decide on numbers, and the device in use."""
    device = jax.devices()[0]
    return {
        "versions": versions.installed(),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "machine": platform.machine(),
        },
    }


def write(
    folder: AnyPath | str, evaluation: Evaluation, *, title: str, provenance: Mapping[str, Any]
) -> list[AnyPath]:
    """Write results.json, report.md and pictures/*.png; files of these names are replaced.

    Args:
        folder: where; made if it is not there.
        evaluation: what was measured.
        title: the report's first line.
        provenance: "seed", "versions" and "device" (see `environment`), "wall_seconds", "hashes" (a
            dict of names to hashes); further entries are written too. Plain values only.

    Returns:
        The paths written, report.md last, so that a report only ever names files that exist.

    Raises:
        InputError: if the folder cannot be written.
        ValueError: if provenance lacks an entry or a number is not finite.
    """
    if missing := [name for name in PROVENANCE if name not in provenance]:
        raise ValueError(f"the provenance of an evaluation lacks {', '.join(missing)}")
    folder = files.path(folder)
    drawn = _pictures(evaluation)
    results = {
        "title": title,
        "protocol": PROTOCOL,
        "rows": evaluation.rows,
        "sweep": evaluation.sweep,
        "metrics": protocol.METRICS,
        "per_class": _per_class(evaluation),
        "extremes": _extremes(evaluation.extremes),
        "pictures": [picture.entry for picture in drawn],
        "settings": vars(evaluation.settings),
        **provenance,
    }
    text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    paths = [write_file(folder / "results.json", text.encode())]
    paths += [pictures.save_png(folder / drew.entry["file"], drew.image) for drew in drawn]
    report = markdown(evaluation, title, provenance)
    return [*paths, write_file(folder / "report.md", report.encode())]


def hashes_of(folder: AnyPath | str) -> dict[str, str]:
    """Return what a report that is there already was made of.

    Empty if there is none that can be read.

    Args:
        folder: of the report.
    """
    try:
        return dict(readers.json_object(files.path(folder) / "results.json")["hashes"])
    except (ValueError, KeyError, TypeError):
        return {}


def read_rows(path: AnyPath | str) -> list[dict]:
    """Return the rows of a results.json.

    Raises:
        InputError: if it cannot be read or has no rows.
    """
    rows = readers.json_object(files.path(path)).get("rows")
    if not isinstance(rows, list):
        raise InputError(f'{path} has no list "rows"; expected a results.json of an evaluation')
    return rows


def markdown(evaluation: Evaluation, title: str, provenance: Mapping[str, Any]) -> str:
    """Return the text of report.md."""
    settings = evaluation.settings
    seeds = ", ".join(map(str, settings.seeds))
    spread = f"mean ± standard deviation over the sampling seeds {seeds}"
    explained = [
        f"* {metric_names.metric(name).heading}: {text}" for name, text in protocol.METRICS.items()
    ]
    sections = [
        f"# {title}",
        *headline(evaluation.rows),
        "## Results",
        f"{settings.num_samples} samples in each measurement, balanced over the classes, against "
        f"the training split; {spread}; k = {settings.num_neighbours}. The test split stands for "
        "the floor: real images, measured like samples (but fewer, which costs it some).",
        results_table(evaluation.rows),
        "\n".join(explained),
        "## Pictures",
        f"The same labels everywhere, sampling seed {settings.seeds[0]}, the first images as they "
        "came.",
        "![samples of all models](pictures/all.png)",
        "More of each:",
        _picture_table(evaluation),
        "The generator's samples, and below each the training image nearest to it in pixels:",
        "![nearest training images](pictures/neighbours.png)",
        *_extremes_section(evaluation),
        "## The teacher's samplers",
        f"Compared with {settings.sweep_num_samples} samples of sampling seed "
        f"{settings.sweep_seed}; the least sum of both distances was chosen. Fewer samples make "
        "every distance larger than in the table above. Step counts not swept take the choice of "
        "the nearest one.",
        _sweep_table(evaluation.sweep),
        "## Provenance",
        _provenance_table(provenance),
    ]
    return "\n\n".join(sections) + "\n"


def headline(rows: Sequence[Mapping]) -> list[str]:
    """Return one sentence on each Fréchet distance: the generator against the teacher's best."""
    sentences = []
    for metric, where in (("frechet_features", "in features"), ("frechet_pixels", "in pixels")):
        generator = next(row for row in rows if row["model"] == "generator")
        teachers = [row for row in rows if row["model"] == "teacher"]
        best = min(teachers, key=lambda row: row["metrics"][metric]["mean"])
        ours, theirs = (row["metrics"][metric] for row in (generator, best))
        factor = ours["mean"] / theirs["mean"]
        ours, theirs = (metric_names.value(metric, **value) for value in (ours, theirs))
        sentences.append(
            f"The Fréchet distance {where} of the generator in one step is {ours}, the teacher's "
            f"best {theirs} ({metric_names.count_steps(best['steps'])}): "
            f"{factor:.2f} times as much."
        )
    return sentences


def results_table(rows: Sequence[Mapping]) -> str:
    """Return all metrics of all rows as a Markdown table."""
    headings = [metric_names.metric(name).heading for name in protocol.METRICS]
    head = ["model", "steps", *headings, "sampler"]
    body = [
        [
            metric_names.model(row["model"]),
            str(row["steps"]) if row["steps"] else "",
            *(metric_names.value(name, **row["metrics"][name]) for name in protocol.METRICS),
            metric_names.describe(row["sampler"]),
        ]
        for row in rows
    ]
    return _table(head, body)


def _extremes_section(evaluation: Evaluation) -> list[str]:
    """Return the worst and the best samples, each above the image that it was compared with."""
    if not evaluation.extremes.worst:
        return []
    return [
        f"Of the generator's {evaluation.settings.num_samples} samples of that seed the worst and "
        f"the best, by {by_class.ORDER}; that image is below each:",
        "![worst samples](pictures/worst.png)",
        "![best samples](pictures/best.png)",
    ]


def _sweep_table(sweep: Sequence[Mapping]) -> str:
    head = ["steps", "sampler", "Fréchet, features", "Fréchet, pixels", ""]
    body = [
        [
            str(row["steps"]),
            metric_names.describe(row["sampler"]),
            f"{row['frechet_features']:.2f}",
            f"{row['frechet_pixels']:.2f}",
            "chosen" if row["chosen"] else "",
        ]
        for row in sweep
    ]
    return _table(head, body)


def _provenance_table(provenance: Mapping[str, Any]) -> str:
    body = []
    for name, value in provenance.items():
        if isinstance(value, Mapping):
            body += [[f"{name}: {key}", f"`{entry}`"] for key, entry in value.items()]
        else:
            value = f"{value:.1f}" if isinstance(value, float) else value
            body.append([name.replace("_", " "), f"`{value}`"])
    return _table(["", ""], body)


def _picture_table(evaluation: Evaluation) -> str:
    labels = evaluation.picture_labels[: _columns(evaluation)].tolist()
    body = [
        [_title(*key), f"![{_title(*key)}](pictures/{_file_name(*key)}.png)"]
        for key in _picture_order(evaluation)
    ]
    return _table(["", f"labels {', '.join(map(str, labels))}"], body)


@dataclass(frozen=True)
class Picture:
    """A picture of the report: its pixels, and its entry in results.json."""

    image: UInt8[np.ndarray, "GH GW 3"]
    entry: dict[str, Any]


def _pictures(evaluation: Evaluation) -> list[Picture]:
    """Return every grid, the models' own ones first."""
    columns = _columns(evaluation)
    order = _picture_order(evaluation)
    shown = {
        "labels": evaluation.picture_labels.tolist(),
        "seed": evaluation.settings.seeds[0],
    }
    found = []
    for model, steps in order:
        entry = {"kind": "samples", "model": model, "steps": steps, **shown}
        grid = evaluation.pictures[model, steps]
        found.append(_picture(_file_name(model, steps), grid, columns, None, **entry))
    every = np.concatenate([evaluation.pictures[key][:columns] for key in order])
    titles = [_title(*key) for key in order]
    found.append(_picture("all", every, columns, titles, kind="all"))
    pairs = _alternate(evaluation.pictures["generator", 1], evaluation.neighbours, columns)
    pair_labels = ["generator", "nearest"] * (len(pairs) // (2 * columns))
    found.append(_picture("neighbours", pairs, columns, pair_labels, kind="neighbours"))
    for kind in ("worst", "best"):
        end: list[Extreme] = getattr(evaluation.extremes, kind)
        if end:
            pair = np.stack([item.image for item in end] + [item.nearest for item in end])
            found.append(_picture(kind, pair, len(end), None, kind=kind))
    return found


def _picture(
    name: str,
    group: Float[np.ndarray, "N H W C"],
    columns: int,
    row_labels: Sequence[str] | None,
    **entry: Any,
) -> Picture:
    image = pictures.grid(pictures.to_uint8(group), columns, row_labels)
    return Picture(image, {"file": f"pictures/{name}.png", **entry, "columns": columns})


def _per_class(evaluation: Evaluation) -> dict[str, Any]:
    num_classes = len(evaluation.per_class[0]["metrics"]["accuracy"])
    return {
        "names": [str(label) for label in range(num_classes)],
        "num_samples": evaluation.settings.num_samples // num_classes,
        "metrics": by_class.METRICS,
        "rows": evaluation.per_class,
    }


def _extremes(found: Extremes) -> dict[str, Any]:
    def entry(item: Extreme) -> dict[str, Any]:
        return {"label": item.label, "predicted": item.predicted, "value": item.distance}

    return {
        "model": "generator",
        "by": by_class.ORDER,
        "worst": [entry(item) for item in found.worst],
        "best": [entry(item) for item in found.best],
    }


def _alternate(
    above: Float[np.ndarray, "N H W C"], below: Float[np.ndarray, "N H W C"], columns: int
) -> Float[np.ndarray, "M H W C"]:
    """Rows of `above` and `below` in turns, each of `columns` images; a rest is dropped."""
    parts = []
    for start in range(0, len(above) - columns + 1, columns):
        parts += [above[start : start + columns], below[start : start + columns]]
    return np.concatenate(parts)


def _columns(evaluation: Evaluation) -> int:
    """Return one column for each class where they fit, so that a column holds one label."""
    return min(len(set(evaluation.picture_labels.tolist())), MAX_COLUMNS)


def _picture_order(evaluation: Evaluation) -> list[tuple[str, int]]:
    """Real images first; the generator comes right after the teacher's most steps."""
    order = ["test_split", "teacher", "generator"]
    return sorted(evaluation.pictures, key=lambda key: (order.index(key[0]), key[1]))


def _file_name(model: str, steps: int) -> str:
    return f"teacher_{steps:02d}_steps" if model == "teacher" else model


def _title(model: str, steps: int) -> str:
    name = metric_names.model(model)
    return f"{name}, {metric_names.count_steps(steps)}" if steps else name


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
