"""The tables of an evaluation: text in rows and columns, for the template and for Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dimo_jax.evaluation.metrics import names as metric_names
from dimo_jax.evaluation.metrics.protocols import MIN_COMPARABLE
from dimo_jax.evaluation.metrics.rows import Row, Value
from dimo_jax.evaluation.report.schema import Results, finite, whole

# Of more classes than this, those with the largest distances are shown.
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


def markdown(table: Table | None, mark_best: bool = True) -> str:
    """Return a table as Markdown, '' for none; a line's group stands before its header.

    Args:
        table: whose caption and notes are left out.
        mark_best: whether the best values are bold.
    """
    if table is None:
        return ""
    head = [plain(heading.text) for heading in table.headings]
    lines = [head, ["---"] * len(head)]
    for line in table.lines:
        first = f"{line.group}: {line.header}" if line.group else line.header
        cells = [(plain(cell.text), cell.best and mark_best) for cell in line.cells]
        lines.append([plain(first), *(f"**{text}**" if bold else text for text, bold in cells)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(text: str) -> str:
    """Text that can stand in a Markdown cell: one line, no bar, no tag."""
    text = " ".join(text.split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def headline(results: Results) -> Table:
    """Teacher at each step count against the generator, in the paper's columns."""
    names = headline_names(results)
    return _metrics_table(results, names, "Teacher and generator", with_sampler=False)


def headline_names(results: Results) -> list[str]:
    """Return the columns of the headline table.

    All metrics where none of the usual ones is there.
    """
    found = results.metric_names
    return [name for name in found if metric_names.metric(name).headline] or found


def every_metric(results: Results) -> Table:
    """Return all figures of all rows, in their own order, and every row's sampler."""
    names = list(dict.fromkeys(name for row in results.rows for name in row.metrics))
    with_sampler = any(row.sampler for row in results.rows)
    with_number = any("num" in row.rest for row in results.rows)
    return _metrics_table(results, names, "Results", with_sampler, with_number)


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
        precise: see metrics.names.value.
    """
    cells = []
    for name in names:
        value = row.metrics.get(name, Value(None, None))
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
    results: Results,
    names: Sequence[str],
    caption: str,
    with_sampler: bool,
    with_number: bool = False,
) -> Table:
    rows = results.rows
    best = {name: best_mean(rows, name) for name in names}
    temperatures = [temperature(row) for row in rows]
    show_temperature = len({x for x in temperatures if x is not None}) > 1
    lines = []
    for row, here in zip(rows, temperatures, strict=True):
        cells = [Cell(str(row.steps) if row.steps else "")]
        if show_temperature:
            cells.append(Cell("" if here is None else f"{here:g}"))
        if with_number:
            cells.append(Cell(f"{whole(row.rest.get('num')):,}"))
        cells += metric_cells(row, names, best, is_precise(results))
        if with_sampler:
            cells.append(Cell(metric_names.describe(row.sampler), words=True))
        lines.append(Line(metric_names.model(row.model), cells, strong=row.model == "generator"))
    headings = [Heading("model"), Heading("steps")]
    headings += [Heading("temperature")] if show_temperature else []
    headings += [Heading("N")] if with_number else []
    headings += metric_headings(names) + ([Heading("sampler")] if with_sampler else [])
    return Table(caption, headings, lines)


def temperature(row: Row) -> float | None:
    """Return the sampler's temperature of the tokens, None where there is none."""
    return finite(row.sampler.get("temperature"))


def explained(results: Results, names: Iterable[str] | None = None) -> list[tuple[str, str, str]]:
    """(heading, direction, explanation) of every metric; the results' own explanation first."""
    found = []
    for name in names or results.metric_names:
        shown = metric_names.metric(name)
        direction = f"{shown.better} is better" if shown.better else "no end is the better one"
        found.append((shown.heading, direction, results.metrics.get(name) or shown.explanation))
    return found


def sweep(results: Results) -> Table | None:
    """Return the teacher's samplers that were compared before; None where none were."""
    if not results.sweep:
        return None
    names = sweep_names(results)
    lines = []
    for candidate in results.sweep:
        row, chosen = candidate.row, candidate.chosen
        numbers = [Cell(metric_names.value(name, row.mean(name))) for name in names]
        sampler = Cell(metric_names.describe(row.sampler), words=True)
        cells = [sampler, *numbers, Cell("chosen" if chosen else "")]
        lines.append(Line(str(row.steps), cells, strong=chosen))
    headings = [Heading("steps"), Heading("sampler"), *metric_headings(names), Heading("choice")]
    return Table("The teacher's samplers that were compared", headings, lines)


def sweep_names(results: Results) -> list[str]:
    """Return the metrics that the swept samplers were compared by."""
    return metric_names.in_order(name for x in results.sweep for name in x.row.metrics)


def class_means(row: Row, name: str) -> list[float | None]:
    """Return the mean of a metric for each class."""
    return [value and value.mean for value in row.per_class.get(name, ())]


def class_names(results: Results, number: int) -> list[str]:
    """Names of the classes, their numbers where the results have no names."""
    names = results.per_class.names
    return list(names[:number]) if len(names) >= number else [str(x) for x in range(number)]


def classes(results: Results) -> list[Table]:
    """For each per-class metric a table: a row for each class, a column for each model."""
    rows = results.per_class.rows
    tables = []
    for metric in metric_names.in_order(name for row in rows for name in row.per_class):
        having = [(row, class_means(row, metric)) for row in rows if metric in row.per_class]
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
    """Return everything that results.json says of where its figures come from, one entry a row."""
    lines = [Line(name, [Cell(text)]) for name, text in provenance_entries(results)]
    return Table("Provenance", [Heading("entry"), Heading("value")], lines, numbers=False)


def provenance_entries(results: Results) -> list[tuple[str, str]]:
    """Return protocol, settings and provenance as (name, text) pairs."""
    found = {"protocol": results.protocol, "settings": results.settings}
    return flat({**found, **results.provenance})


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
    if isinstance(value, list | tuple):
        value = ", ".join(str(entry) for entry in value)
    return [(prefix, metric_names.MISSING if value is None else str(value))]
