"""The tables of a page: text in rows and columns, ready for the template, which escapes it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dimo_jax.evaluation.metrics import names as metric_names
from dimo_jax.evaluation.metrics.protocols import MIN_COMPARABLE
from dimo_jax.evaluation.report import page_data
from dimo_jax.evaluation.report.page_data import Results, Row

# Of a results.json, what the page shows elsewhere.
SHOWN = (
    *("rows", "sweep", "metrics", "per_class", "extremes", "pictures", "title", "markdown"),
    "training",
)
# Of more classes than this, those with the largest distances are told.
MAX_CLASSES = 40
NO_SAMPLES = ("test_split", "real")


@dataclass(frozen=True)
class Heading:
    """Of a column: its text, and "lower" or "higher" where one end is better."""

    text: str
    better: str = ""


@dataclass(frozen=True)
class Cell:
    """One value; `best` where no other of its column is better, `words` for what may wrap."""

    text: str
    best: bool = False
    words: bool = False


@dataclass(frozen=True)
class Line:
    """One row: its header, then a cell for each further column."""

    header: str
    cells: list[Cell]
    strong: bool = False
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A caption, headings (the first one above the row headers) and rows."""

    caption: str
    headings: list[Heading]
    lines: list[Line]
    numbers: bool = True
    notes: list[str] = field(default_factory=list)


def headline(results: Results) -> Table:
    """Teacher at each step count against the generator, in the paper's columns."""
    names = headline_names(results)
    return _metrics_table(results, names, "Teacher and generator", with_sampler=False)


def headline_names(results: Results) -> list[str]:
    """Return the columns of the headline table.

    All metrics where none of the usual ones is there.
    """
    found = results.metric_names
    return [name for name in found if metric_names.is_headline(name)] or found


def others(results: Results) -> Table | None:
    """Return the metrics that the headline table leaves out, and every row's sampler."""
    shown = headline_names(results)
    names = [name for name in results.metric_names if name not in shown]
    if not names and not any(row.sampler for row in results.rows):
        return None
    return _metrics_table(results, names, "Further metrics and samplers", with_sampler=True)


def is_precise(results: Results) -> bool:
    """Return whether there are samples enough for the paper's three decimals of a share."""
    return (results.num_samples or 0) >= MIN_COMPARABLE


def best_mean(rows: Iterable[Row], name: str) -> float | None:
    """Return the best mean of a metric among samples, real images aside.

    None where neither end is better, or all are equal.
    """
    better = metric_names.metric(name).better
    means = [row.mean(name) for row in rows if row.model not in NO_SAMPLES]
    means = [mean for mean in means if mean is not None]
    if not better or len(set(means)) < 2:
        return None
    return min(means) if better == "lower" else max(means)


def metric_cells(
    row: Row, names: Sequence[str], best: Mapping[str, float | None], precise: bool
) -> list[Cell]:
    """Return the row's values as text.

    Args:
        row: one measurement.
        names: of the columns.
        best: the best mean of each.
        precise: see naming.value.
    """
    cells = []
    for name in names:
        value = row.metrics.get(name, page_data.Value(None, None))
        is_best = value.mean is not None and value.mean == best[name]
        is_best = is_best and row.model not in NO_SAMPLES
        cells.append(Cell(metric_names.value(name, value.mean, value.std, precise), is_best))
    return cells


def metric_headings(names: Sequence[str]) -> list[Heading]:
    """Return a heading for each metric, with its direction."""
    return [
        Heading(metric_names.metric(name).heading, metric_names.metric(name).better)
        for name in names
    ]


def _metrics_table(
    results: Results, names: Sequence[str], caption: str, with_sampler: bool
) -> Table:
    rows = results.rows
    best = {name: best_mean(rows, name) for name in names}
    show_temperature = len({row.temperature for row in rows if row.temperature is not None}) > 1
    lines = []
    for row in rows:
        cells = [Cell(str(row.steps) if row.steps else "")]
        if show_temperature:
            cells.append(Cell("" if row.temperature is None else f"{row.temperature:g}"))
        cells += metric_cells(row, names, best, is_precise(results))
        if with_sampler:
            cells.append(Cell(_sampler(row.sampler), words=True))
        lines.append(Line(metric_names.model(row.model), cells, strong=row.model == "generator"))
    headings = [Heading("model"), Heading("steps")]
    headings += [Heading("temperature")] if show_temperature else []
    headings += metric_headings(names) + ([Heading("sampler")] if with_sampler else [])
    return Table(caption, headings, lines)


def _sampler(sampler: Mapping[str, Any]) -> str:
    return metric_names.describe(sampler).replace("_", " ")


def explained(results: Results) -> list[tuple[str, str, str]]:
    """(heading, direction, explanation) of every metric; the results' own explanation first."""
    own = results.part("metrics")
    found = []
    for name in results.metric_names:
        shown = metric_names.metric(name)
        text = own[name] if isinstance(own.get(name), str) else shown.explanation
        direction = f"{shown.better} is better" if shown.better else "no end is the better one"
        found.append((shown.heading, direction, text))
    return found


def sweep(results: Results) -> Table | None:
    """Return the teacher's samplers that were compared before; None where none were."""
    compared = [entry for entry in entries(results.raw.get("sweep")) if "steps" in entry]
    if not compared:
        return None
    names = sweep_names(compared)
    lines = []
    for entry in compared:
        numbers = [metric_names.value(name, page_data.finite(entry.get(name))) for name in names]
        sampler = _sampler(entry["sampler"]) if isinstance(entry.get("sampler"), dict) else ""
        chosen = bool(entry.get("chosen"))
        cells = [Cell(sampler, words=True), *map(Cell, numbers), Cell("chosen" if chosen else "")]
        lines.append(Line(str(entry["steps"]), cells, strong=chosen))
    headings = [Heading("steps"), Heading("sampler"), *metric_headings(names), Heading("choice")]
    return Table("The teacher's samplers that were compared", headings, lines)


def sweep_names(compared: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the metrics of a sweep's entries."""
    other = ("steps", "sampler", "chosen", "model", "seed")
    names = (name for entry in compared for name in entry if name not in other)
    return metric_names.in_order(names)


def class_rows(results: Results) -> list[tuple[Row, dict[str, list[float | None]]]]:
    """(model and steps, metric -> mean for each class) of the results' "per_class"."""
    found = []
    for entry in entries(results.part("per_class").get("rows")):
        values = entry.get("metrics")
        if isinstance(values, dict):
            means = {
                name: [_mean(value) for value in of_class]
                for name, of_class in values.items()
                if isinstance(of_class, list)
            }
            steps = int(page_data.finite(entry.get("steps")) or 0)
            found.append((Row(str(entry.get("model", "samples")), steps, {}, {}), means))
    return found


def _mean(value: Any) -> float | None:
    return page_data.finite(value.get("mean") if isinstance(value, dict) else value)


def class_names(results: Results, number: int) -> list[str]:
    """Names of the classes, their numbers where the results have no names."""
    names = results.part("per_class").get("names")
    if isinstance(names, list) and len(names) >= number:
        return [str(name) for name in names[:number]]
    return [str(label) for label in range(number)]


def classes(results: Results) -> list[Table]:
    """For each per-class metric a table: a row for each class, a column for each model."""
    found = class_rows(results)
    metrics = metric_names.in_order(name for _, means in found for name in means)
    tables = []
    for metric in metrics:
        having = [(row, means[metric]) for row, means in found if metric in means]
        number = max(len(means) for _, means in having)
        names, shown = class_names(results, number), metric_names.metric(metric)
        chosen = _worst_classes(having, number, shown.better)
        lines = []
        for label in chosen:
            values = [means[label] if label < len(means) else None for _, means in having]
            lines.append(Line(names[label], [Cell(metric_names.value(metric, v)) for v in values]))
        headings = [Heading("class")] + [Heading(row.title) for row, _ in having]
        direction = f" ({shown.better} is better)" if shown.better else ""
        caption = f"{shown.heading} by class{direction}"
        if len(chosen) < number:
            caption += f": the {len(chosen)} worst of {number} classes"
        tables.append(Table(caption, headings, lines))
    return tables


def _worst_classes(having: list, number: int, better: str) -> list[int]:
    """Return all classes if they are few, else the worst of the generator, or of the last model."""
    if number <= MAX_CLASSES:
        return list(range(number))
    means = next((m for row, m in having if row.model == "generator"), having[-1][1])
    known = [label for label, mean in enumerate(means) if mean is not None]
    return sorted(known, key=lambda i: means[i], reverse=better != "higher")[:MAX_CLASSES]


def provenance(results: Results) -> Table:
    """Everything else that results.json says, one entry a row."""
    rest = {name: value for name, value in results.raw.items() if name not in SHOWN}
    lines = [Line(name, [Cell(text)]) for name, text in flat(rest)]
    return Table("Provenance", [Heading("entry"), Heading("value")], lines, numbers=False)


def of_each_row(results: Results) -> Table | None:
    """Return what results.json says of single rows besides their metrics; None if nothing."""
    lines = [
        Line(name, [Cell(text)], group=row.title)
        for row in results.rows
        for name, text in flat(row.rest)
        if text not in ("", metric_names.MISSING)
    ]
    headings = [Heading("entry"), Heading("value")]
    return Table("Row by row", headings, lines, numbers=False) if lines else None


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested entries as (name, text) pairs: {"a": {"b": 1}} is [("a: b", "1")]."""
    if isinstance(value, dict):
        inside = [
            flat(entry, f"{prefix}: {name}" if prefix else str(name).replace("_", " "))
            for name, entry in value.items()
        ]
        return [pair for pairs in inside for pair in pairs]
    if isinstance(value, list):
        value = ", ".join(str(entry) for entry in value)
    return [(prefix, metric_names.MISSING if value is None else str(value))]


def entries(value: Any) -> list[dict]:
    """Return the objects of a list; [] for what is no list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
