"""What a page shows, read from a folder: results.json, its pictures, the run's metrics.jsonl.

results.json is the contract between whatever measures and the pages. "rows" is all that must be
there: [{"model", "steps", "metrics": {name: {"mean", "std"}}, "sampler"}]. What else it may hold:
"protocol", "settings" (with "num_samples", "seeds"), "metrics" ({name: explanation}), "sweep",
"per_class", "extremes" and "pictures" as `report.write` makes them, and any provenance.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dimo_jax.bundles import places
from dimo_jax.common import files, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.config import flat
from dimo_jax.evaluation.metrics import names as metric_names
from dimo_jax.training import metrics

FILE_NAME = "results.json"
# Of sampler fields, those that curves are drawn over.
TEMPERATURES = ("temperature", "choice_temperature")


@dataclass(frozen=True)
class Value:
    """One metric of one row; None where it was not measured or is not finite."""

    mean: float | None
    std: float | None


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        model: "teacher", "generator", "test_split" or any other name.
        steps: network calls of the sampler; 0 where that means nothing.
        metrics: name -> value.
        sampler: its settings.
        rest: what else is said of it: "num", "seed", "warnings", the metrics' parts, hashes.
    """

    model: str
    steps: int
    metrics: Mapping[str, Value]
    sampler: Mapping[str, Any]
    rest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """'teacher, 4 steps'."""
        return title(self.model, self.steps)

    def mean(self, name: str) -> float | None:
        """Return the mean of a metric, None where there is none."""
        return self.metrics[name].mean if name in self.metrics else None

    @property
    def temperature(self) -> float | None:
        """The sampler's, of the tokens."""
        return finite(self.sampler.get("temperature"))


@dataclass(frozen=True)
class Results:
    """A folder with results.

    Attributes:
        path: of the results.json.
        raw: its content.
        rows: checked.
    """

    path: AnyPath
    raw: Mapping[str, Any]
    rows: list[Row]

    @property
    def folder(self) -> AnyPath:
        """Where its pictures are."""
        return self.path.parent

    @property
    def metric_names(self) -> list[str]:
        """Every metric of any row, in the order of the columns."""
        return metric_names.in_order(name for row in self.rows for name in row.metrics)

    def setting(self, *names: str) -> Any:
        """Return the first of these names in the settings, the protocol or at the top.

        None without.
        """
        for place in (self.part("settings"), self.part("protocol"), self.raw):
            for name in names:
                if place.get(name) is not None:
                    return place[name]
        return None

    def part(self, name: str) -> Mapping[str, Any]:
        """Return an entry that is an object; empty where it is missing."""
        found = self.raw.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def protocol(self) -> str:
        """Its name, '' if none is given."""
        found = self.raw.get("protocol") or ""
        return str(found.get("name", "") if isinstance(found, dict) else found)

    @property
    def protocol_about(self) -> str:
        """Where the protocol comes from, '' if that is not told."""
        return str(self.part("protocol").get("about", ""))

    @property
    def num_samples(self) -> int | None:
        """N of each measurement; None where rows differ in it."""
        found = {finite(self.setting("num_samples")) or finite(row.rest.get("num"))
                 for row in self.rows}  # fmt: skip
        number = found.pop() if len(found) == 1 else None
        return None if number is None else int(number)


def training(results: Results) -> dict[str, Any]:
    """Return the settings that the run was trained with, {"section.field": value}.

    Those in the results, else of the run's config.json beside them or one folder up; empty where
    there are none.
    """
    folder = results.folder
    folder = folder if files.is_remote(folder) else folder.absolute()
    configs = (places.run_config(place) for place in (folder, folder.parent))
    return results.part("training") or flat(next(filter(None, configs), {}))


def title(model: str, steps: int) -> str:
    """'teacher, 4 steps'; only the name where steps is 0."""
    name = metric_names.model(model)
    return f"{name}, {metric_names.count_steps(steps)}" if steps else name


def finite(value: Any) -> float | None:
    """Return the number, or None for anything else and for what is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def find(path: AnyPath | str) -> AnyPath:
    """Return the results.json that a path means: itself, in that folder, or in a run's one report.

    Args:
        path: a results.json, its folder, or a workdir that holds one such folder (of several, the
            one called report).

    Raises:
        InputError: there is none, or several and none is called report.
    """
    path = files.path(path)
    if path.is_file():
        return path
    if (path / FILE_NAME).is_file():
        return path / FILE_NAME
    if (path / "report" / FILE_NAME).is_file():
        return path / "report" / FILE_NAME
    inside = sorted(path.glob(f"*/{FILE_NAME}"))
    if len(inside) == 1:
        return inside[0]
    if inside:
        folders = ", ".join(str(entry.parent) for entry in inside)
        raise InputError(f"{path} holds several evaluations; name one of them: {folders}")
    raise InputError(
        f"{path} has no {FILE_NAME}; name a run that was evaluated, an evaluation's folder or its "
        f"{FILE_NAME}"
    )


def load(path: AnyPath | str) -> Results:
    """Read and checks results; `path` as in `find`.

    Raises:
        InputError: if there is none, it is not JSON, or its rows are not as described above.
    """
    path = find(path)
    raw = readers.json_object(path)
    rows = raw.get("rows")
    if not isinstance(rows, list):
        raise InputError(f'{path} has no list "rows"; expected a {FILE_NAME} of an evaluation')
    return Results(path, raw, [_row(path, i, row) for i, row in enumerate(rows)])


def _row(path: AnyPath, index: int, row: Any) -> Row:
    if not isinstance(row, dict) or not isinstance(row.get("metrics"), dict):
        raise InputError(f'{path}: row {index} has no "metrics"; expected {{"metrics": {{...}}}}')
    values = {}
    for name, value in row["metrics"].items():
        pair = value if isinstance(value, dict) else {"mean": value}
        values[str(name)] = Value(finite(pair.get("mean")), finite(pair.get("std")))
    steps = finite(row.get("steps"))
    sampler = row.get("sampler")
    return Row(
        str(row.get("model", "samples")),
        int(steps or 0),
        values,
        sampler if isinstance(sampler, dict) else {},
        {k: v for k, v in row.items() if k not in ("model", "steps", "metrics", "sampler")},
    )


def records(results: Results, workdir: AnyPath | str | None) -> list[dict[str, Any]]:
    """Return the run's metrics, oldest first; [] where there are none.

    Args:
        results: whose.
        workdir: of the run; None looks beside the results and one folder up.

    Raises:
        InputError: if a line of metrics.jsonl, other than a torn last one, is not JSON.
    """
    if workdir is not None:
        return metrics.read(workdir)
    folder = results.folder
    folder = folder if files.is_remote(folder) else folder.absolute()
    for place in (folder, folder.parent):
        if (place / metrics.FILE_NAME).is_file():
            return metrics.read(place)
    return []
