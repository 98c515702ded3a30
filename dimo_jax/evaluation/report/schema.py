"""results.json, the contract between what measures and what shows: written and read here alone.

Files of before have no "version"; their "protocol" may be a name alone, and rows are all that must
be there: [{"model", "steps", "metrics": {name: {"mean", "std"}}, "sampler"}]. Files may come from
strangers: an entry that is not what it should be is passed over, as if it were missing.
Over 350 lines, so that the writer and the reader of every field stay side by side.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from dimo_jax.common import files, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath, write_file
from dimo_jax.evaluation.metrics import names
from dimo_jax.evaluation.metrics.rows import Row, Value
from dimo_jax.evaluation.report.run_folders import FILE_NAME, find

VERSION = 2
PROVENANCE = ("seed", "versions", "device", "wall_seconds", "hashes")
_OF_ROW = ("model", "steps", "metrics", "sampler", "warnings")
_OF_CANDIDATE = ("steps", "sampler", "chosen", "model", "seed")


@dataclass(frozen=True)
class Candidate:
    """One of the teacher's samplers that were compared, with few samples; its row is complete."""

    row: Row
    chosen: bool


@dataclass(frozen=True)
class Classes:
    """Figures class by class.

    Attributes:
        rows: those that have any, in `Row.per_class`.
        names: of the classes; empty for their numbers.
        num_samples: of each class in a measurement, where that is known.
        metrics: name -> explanation.
    """

    rows: Sequence[Row] = ()
    names: Sequence[str] = ()
    num_samples: int | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Extreme:
    """A sample at an end of the order: its class, the class that is seen in it, its distance."""

    label: Any = None
    predicted: Any = None
    value: float | None = None


@dataclass(frozen=True)
class Extremes:
    """Samples of a model at both ends, worst and best first; `by` is their order in words."""

    by: str = ""
    model: str = ""
    worst: Sequence[Extreme] = ()
    best: Sequence[Extreme] = ()


@dataclass(frozen=True)
class Picture:
    """A picture beside results.json.

    Attributes:
        file: its path from there.
        kind: "samples", "neighbours", "originals", "worst", "best", "all" or any other.
        model: whose samples.
        steps: of the sampler.
        seed: of the samples.
        labels: of the samples.
        columns: tiles in a row; 0 where that is not known.
        title: what it shows; '' for model and steps.
    """

    file: str
    kind: str = "other"
    model: str = ""
    steps: int = 0
    seed: int | None = None
    labels: Sequence[Any] = ()
    columns: int = 0
    title: str = ""


@dataclass(frozen=True)
class Results:
    """All that one evaluation found.

    Attributes:
        rows: of the tables.
        provenance: PROVENANCE, and whatever else is said of where the figures come from.
        title: of the page.
        protocol: "name", "about" and what else describes it.
        settings: what was run: "num_samples", "seeds" and more.
        metrics: name -> explanation, in place of that of metrics.names.
        sweep: the teacher's samplers that were compared.
        per_class: figures class by class.
        extremes: the worst and the best samples.
        pictures: beside the file.
        training: the settings the run was trained with, {"section.field": value}.
        path: where it was read from.
    """

    rows: Sequence[Row]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    sweep: Sequence[Candidate] = ()
    per_class: Classes = Classes()
    extremes: Extremes = Extremes()
    pictures: Sequence[Picture] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    path: AnyPath | None = None

    @property
    def folder(self) -> AnyPath:
        """Where it was read from.

        Raises:
            ValueError: it was not read.
        """
        if self.path is None:
            raise ValueError("results that were read from no file lie in no folder")
        return self.path.parent

    @property
    def metric_names(self) -> list[str]:
        """Every metric of any row, in the order of the columns."""
        return names.in_order(name for row in self.rows for name in row.metrics)

    @property
    def hashes(self) -> Mapping[str, Any]:
        """Name -> hash of what the figures were made of."""
        return _object(self.provenance.get("hashes"))

    @property
    def num_samples(self) -> int | None:
        """N of each measurement; None where rows differ in it."""
        given = finite(self.setting("num_samples"))
        found = {given or finite(row.rest.get("num")) for row in self.rows}
        number = found.pop() if len(found) == 1 else None
        return None if number is None else int(number)

    def setting(self, *keys: str) -> Any:
        """Return the first of these in the settings, the protocol or the provenance, or None."""
        for place in (self.settings, self.protocol, self.provenance):
            for key in keys:
                if place.get(key) is not None:
                    return place[key]
        return None


def write(folder: AnyPath | str, results: Results) -> AnyPath:
    """Write results.json; one that is there is replaced.

    Returns:
        Its path.

    Raises:
        InputError: the folder cannot be written.
        ValueError: the provenance lacks an entry, or a number is not finite.
    """
    if missing := [name for name in PROVENANCE if name not in results.provenance]:
        raise ValueError(f"the provenance of an evaluation lacks {', '.join(missing)}")
    text = json.dumps(as_json(results), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return write_file(files.path(folder) / FILE_NAME, text.encode())


def as_json(results: Results) -> dict[str, Any]:
    """Return the content of results.json, without what is empty."""
    classes = results.per_class
    content = {
        "version": VERSION,
        "title": results.title,
        "protocol": results.protocol,
        "rows": [_row_json(row) for row in results.rows],
        "sweep": [
            {"steps": x.row.steps, "sampler": x.row.sampler}
            | {name: value.mean for name, value in x.row.metrics.items()}
            | {"chosen": x.chosen}
            for x in results.sweep
        ],
        "metrics": results.metrics,
        "per_class": classes.rows
        and _filled(classes) | {"rows": [_class_row_json(row) for row in classes.rows]},
        "extremes": _filled(results.extremes)
        | {
            kind: [_filled(item) for item in getattr(results.extremes, kind)]
            for kind in ("worst", "best")
            if getattr(results.extremes, kind)
        },
        "pictures": [_filled(picture) for picture in results.pictures],
        "settings": results.settings,
        "training": results.training,
    }
    return {k: v for k, v in content.items() if k == "rows" or v} | dict(results.provenance)


def _filled(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that are not empty; 0 is something."""
    found = {x.name: getattr(value, x.name) for x in fields(value)}
    return {name: entry for name, entry in found.items() if entry == 0 or entry}


def _value_json(value: Value | None) -> dict[str, float | None] | None:
    return None if value is None else value._asdict()


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "model": row.model,
        "steps": row.steps,
        "metrics": {name: _value_json(value) for name, value in row.metrics.items()},
        "sampler": dict(row.sampler),
        **{name: value for name, value in row.rest.items() if value != {}},
        **({"warnings": list(row.warnings)} if row.warnings else {}),
    }


def _class_row_json(row: Row) -> dict[str, Any]:
    metrics = {name: [_value_json(x) for x in values] for name, values in row.per_class.items()}
    return {"model": row.model, "steps": row.steps, "metrics": metrics}


def read(path: AnyPath | str) -> Results:
    """Read and check results; `path` as in `find`.

    Raises:
        InputError: there is none, it is not JSON, its rows are not as described above, or a later
            version of the program wrote it.
    """
    path = find(path)
    raw = dict(readers.json_object(path))
    if (finite(raw.pop("version", None)) or 0) > VERSION:
        raise InputError(f"{path} was written by a later version of dimo_jax; update this one")
    rows = raw.pop("rows", None)
    if not isinstance(rows, list):
        raise InputError(f'{path} has no list "rows"; expected a {FILE_NAME} of an evaluation')
    title, protocol = raw.pop("title", None), raw.pop("protocol", None) or {}
    return Results(
        rows=[_row(path, i, row) for i, row in enumerate(rows)],
        title="" if title is None else str(title),
        protocol=protocol if isinstance(protocol, dict) else {"name": str(protocol)},
        settings=_object(raw.pop("settings", None)),
        metrics=_texts(raw.pop("metrics", None)),
        sweep=[_candidate(x) for x in _objects(raw.pop("sweep", None)) if "steps" in x],
        per_class=_classes(_object(raw.pop("per_class", None))),
        extremes=_extremes(_object(raw.pop("extremes", None))),
        pictures=[
            _picture(x)
            for x in _objects(raw.pop("pictures", None))
            if isinstance(x.get("file"), str)
        ],
        training=_object(raw.pop("training", None)),
        provenance={k: v for k, v in raw.items() if k != "markdown"},
        path=path,
    )


def _row(path: AnyPath, index: int, row: Any) -> Row:
    if not isinstance(row, dict) or not isinstance(row.get("metrics"), dict):
        raise InputError(f'{path}: row {index} has no "metrics"; expected {{"metrics": {{...}}}}')
    warnings = row.get("warnings")
    return Row(
        str(row.get("model", "samples")),
        whole(row.get("steps")),
        {str(name): _value(value) for name, value in row["metrics"].items()},
        _object(row.get("sampler")),
        warnings=[str(text) for text in warnings] if isinstance(warnings, list) else [],
        rest={k: v for k, v in row.items() if k not in _OF_ROW},
    )


def _value(value: Any) -> Value:
    pair = value if isinstance(value, dict) else {"mean": value}
    return Value(finite(pair.get("mean")), finite(pair.get("std")))


def _candidate(entry: Mapping[str, Any]) -> Candidate:
    metrics = {str(k): Value(finite(v), None) for k, v in entry.items() if k not in _OF_CANDIDATE}
    row = Row("teacher", whole(entry["steps"]), metrics, _object(entry.get("sampler")))
    return Candidate(row, bool(entry.get("chosen")))


def _classes(entry: Mapping[str, Any]) -> Classes:
    rows = []
    for row in _objects(entry.get("rows")):
        of_class = {
            str(name): [None if value is None else _value(value) for value in values]
            for name, values in _object(row.get("metrics")).items()
            if isinstance(values, list)
        }
        model = str(row.get("model", "samples"))
        rows.append(Row(model, whole(row.get("steps")), {}, per_class=of_class))
    labels = entry.get("names")
    return Classes(
        rows,
        [str(label) for label in labels] if isinstance(labels, list) else [],
        whole(entry.get("num_samples")) or None,
        _texts(entry.get("metrics")),
    )


def _extremes(entry: Mapping[str, Any]) -> Extremes:
    ends = (
        [Extreme(x.get("label"), x.get("predicted"), finite(x.get("value"))) for x in _objects(end)]
        for end in (entry.get("worst"), entry.get("best"))
    )
    return Extremes(str(entry.get("by", "")), str(entry.get("model", "")), *ends)


def _picture(entry: Mapping[str, Any]) -> Picture:
    seed, labels = entry.get("seed"), entry.get("labels")
    return Picture(
        entry["file"],
        str(entry.get("kind", "other")),
        str(entry.get("model", "")),
        whole(entry.get("steps")),
        seed if isinstance(seed, int) else None,
        labels if isinstance(labels, list) else [],
        whole(entry.get("columns")),
        str(entry.get("title") or ""),
    )


def finite(value: Any) -> float | None:
    """Return the number, or None for anything else and for what is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def whole(value: Any) -> int:
    """Return a number's integer part, 0 for anything else."""
    return int(finite(value) or 0)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [x for x in value if isinstance(x, dict)] if isinstance(value, list) else []


def _texts(value: Any) -> dict[str, str]:
    return {k: v for k, v in _object(value).items() if isinstance(v, str)}
