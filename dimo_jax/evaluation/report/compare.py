"""Runs side by side: the figures of several evaluations in Markdown and as one page.

Figures compare only where the same thing was measured. Whatever differs from the first run in
protocol, number of samples, reference, feature network or neighbours is shown, and marked.
"""

import os
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dimo_jax.common import files
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath, write_file
from dimo_jax.evaluation.metrics import names as metric_names
from dimo_jax.evaluation.metrics.rows import Row
from dimo_jax.evaluation.report import (
    page,
    page_curves,
    page_pictures,
    page_tables,
    run_folders,
    schema,
)
from dimo_jax.evaluation.report.page_charts import Chart, Series
from dimo_jax.evaluation.report.page_tables import Cell, Heading, Line, Table
from dimo_jax.evaluation.report.schema import Results

MARKDOWN_NAME, HTML_NAME = "compare.md", "compare.html"
KICKER = "Comparison of evaluations"  # above the page's heading, whatever that is
MAX_RUNS = 8
# What must agree, in words, and where a results.json has it.
CONDITIONS: dict[str, Callable[[Results], Any]] = {
    "protocol": lambda results: results.protocol.get("name"),
    "number of samples": lambda results: results.num_samples,
    "reference": lambda results: _hash(results, "reference", "training_data"),
    "feature network": lambda results: _hash(results, "weights", "features", "classifier"),
    "k": lambda results: results.setting("num_neighbours", "k"),
    "metrics": lambda results: tuple(results.metric_names),
}


class Comparison(NamedTuple):
    """The same in two forms."""

    markdown: str
    html: str


@dataclass(frozen=True)
class Run:
    """One of the runs.

    Attributes:
        letter: "A" for the first.
        name: its letter and what its path calls it.
        results: what was measured.
        differences: why its figures do not compare with the first run's; [] if they do.
    """

    letter: str
    name: str
    results: Results
    differences: list[str]


def compare(paths: Sequence[AnyPath | str], title: str = "Runs side by side") -> Comparison:
    """Read the runs and put them side by side.

    Args:
        paths: two or more workdirs, evaluation folders or results.json files; the others are
            compared with the first.
        title: the heading.

    Raises:
        InputError: if there are fewer than two paths or more than MAX_RUNS, or one has no results.
    """
    runs = load(paths)
    return Comparison(markdown(runs, title), html(runs, title))


def write(
    paths: Sequence[AnyPath | str], folder: AnyPath | str, title: str = "Runs side by side"
) -> list[AnyPath]:
    """Write compare.md and compare.html; files of these names are replaced.

    Args:
        paths: as in `compare`.
        folder: where; made if it is not there.
        title: the heading.

    Returns:
        The paths written.

    Raises:
        InputError: as `compare`, or if the folder cannot be written.
    """
    made, folder = compare(paths, title), files.path(folder)
    # The page first: it shows whose both are.
    page = write_file(folder / HTML_NAME, made.html.encode(errors="replace"))
    return [write_file(folder / MARKDOWN_NAME, made.markdown.encode(errors="replace")), page]


def load(paths: Sequence[AnyPath | str]) -> list[Run]:
    """Return the runs, each with what sets it apart from the first."""
    if not 2 <= len(paths) <= MAX_RUNS:
        raise InputError(
            f"{len(paths)} runs were given to compare; give 2 to {MAX_RUNS}: workdirs, folders of "
            "evaluations or results.json files"
        )
    found = [schema.read(path) for path in paths]
    names = _names(paths)
    runs = []
    for letter, name, results in zip(string.ascii_uppercase, names, found, strict=False):
        runs.append(Run(letter, f"{letter}: {name}", results, differences(found[0], results)))
    return runs


def _names(paths: Sequence[AnyPath | str]) -> list[str]:
    """Return the shortest end of each path that tells it from the others."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    longest = max(map(len, parts))
    for size in range(1, longest + 1):
        names = ["/".join(part[-size:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(path) for path in paths]


def differences(first: Results, other: Results) -> list[str]:
    """Return what was measured in another way than in the first run.

    What is unknown in one counts not.
    """
    found = []
    for name, read in CONDITIONS.items():
        ours, theirs = read(first), read(other)
        if name == "metrics":
            if not set(ours) & set(theirs):
                found.append("no metric in common")
        elif ours not in (None, "") and theirs not in (None, "") and ours != theirs:
            found.append(f"{name} {_short(theirs)}, not {_short(ours)}")
    return found


def _hash(results: Results, *names: str) -> Any:
    return next((results.hashes[name] for name in names if results.hashes.get(name)), None)


def _short(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def markdown(runs: Sequence[Run], title: str) -> str:
    """Return the comparison as Markdown tables."""
    sections = [f"# {page_tables.plain(title)}", page_tables.markdown(overview(runs))]
    sections += [f"**{page_tables.plain(run.name)}** {page_tables.plain(not_comparable(run))}"
                 for run in runs if run.differences]  # fmt: skip
    if trained := training_settings(runs):
        rows = [page_tables.markdown(trained)] if trained.lines else ["None differs."]
        sections += ["## Training settings that differ", *rows]
    sections += ["## Figures", page_tables.markdown(figures(runs))]
    if (rest := settings(runs)).lines:
        sections += ["## What else differs", page_tables.markdown(rest)]
    return "\n\n".join(sections) + "\n"


def not_comparable(run: Run) -> str:
    """Return the mark of a run that was measured in another way."""
    return f"is not comparable with A: {'; '.join(run.differences)}."


def html(runs: Sequence[Run], title: str) -> str:
    """Return the comparison as a page of its own, in the style of report.html."""
    records = {run.name: run_folders.records(run.results.folder) for run in runs}
    training, _ = page_curves.over_training(records)
    return page.render(
        "compare.html",
        kicker=KICKER,
        title=title,
        overview=overview(runs),
        warnings=[f"{run.name} {not_comparable(run)}" for run in runs if run.differences],
        trained=training_settings(runs),
        charts=charts(runs),
        figures=figures(runs),
        samples=samples(runs),
        training=training,
        settings=settings(runs),
    )


def overview(runs: Sequence[Run]) -> Table:
    """Return a row for each run: what it is and whether it compares with the first."""
    lines = []
    for run in runs:
        results, first = run.results, run is runs[0]
        seeds = results.setting("seeds", "seed")
        seeds = [] if seeds is None else seeds
        number = results.num_samples
        texts = [
            results.title,
            str(results.protocol.get("name", "")),
            "" if number is None else f"{number:,}",
            ", ".join(map(str, seeds if isinstance(seeds, list) else [seeds])),
            "" if first else ("no" if run.differences else "yes"),
        ]
        lines.append(Line(run.name, [Cell(text) for text in texts], strong=first))
    names = ("run", "title", "protocol", "samples", "seeds", "comparable with A")
    return Table("The runs", [Heading(name) for name in names], lines)


def figures(runs: Sequence[Run]) -> Table:
    """For each model and step count a line of each run, in the paper's columns."""
    names = _names_of_metrics(runs)
    nothing = dict.fromkeys(names)
    groups: dict[tuple, list[tuple[Run, Row]]] = {}
    for run in runs:
        times = Counter((row.model, row.steps) for row in run.results.rows)
        for row in run.results.rows:
            # The temperature belongs to the run, unless a run has several.
            temperature = page_tables.temperature(row) if times[row.model, row.steps] > 1 else None
            groups.setdefault((row.model, row.steps, temperature), []).append((run, row))
    lines = []
    for key in sorted(groups, key=_rank):
        title = metric_names.title(key[0], key[1])
        title += "" if key[2] is None else f", temperature {key[2]:g}"
        here = groups[key]
        fair = [row for run, row in here if not run.differences]
        best = {name: page_tables.best_mean(fair, name) for name in names}
        for run, row in here:
            precise = page_tables.is_precise(run.results)
            shown = nothing if run.differences else best
            cells = page_tables.metric_cells(row, names, shown, precise)
            lines.append(Line(run.name + _mark(run), cells, group=title))
    headings = [Heading("run"), *page_tables.metric_headings(names)]
    return Table("Figures of the runs, model by model", headings, lines)


def _names_of_metrics(runs: Sequence[Run]) -> list[str]:
    return metric_names.in_order(
        name for run in runs for name in page_tables.headline_names(run.results)
    )


def _mark(run: Run) -> str:
    return " (not comparable)" if run.differences else ""


def _rank(key: tuple) -> tuple:
    order = ["generator", "teacher"]
    at = order.index(key[0]) if key[0] in order else len(order)
    return at, key[0], key[1], key[2] or 0.0


def charts(runs: Sequence[Run]) -> list[Chart]:
    """Return the teachers over their step counts and the generators, for each headline metric."""
    found = []
    for name in _names_of_metrics(runs)[: page_curves.MAX_CHARTS]:
        series = []
        for model in ("generator", "teacher"):
            for run in runs:
                rows = page_curves.best_of_each(run.results.rows, model, name)
                points = [
                    (float(row.steps), row.mean(name), row.metrics[name].std)
                    for row in rows
                    if row.steps
                ]
                label = f"{run.name}{_mark(run)}, {model}"
                series.append(Series(label, points, len(series), lines=model == "teacher"))
        steps = sorted({x for entry in series for x, _, _ in entry.points})
        shown = metric_names.metric(name)
        drawn = Chart(
            f"{shown.heading} ({shown.better} is better)" if shown.better else shown.heading,
            series,
            x_label="steps",
            x_values=[(x, f"{x:g}") for x in steps],
            x_log=True,
            y_log=not shown.is_share,
            from_zero=True,
        )
        found += [drawn] if drawn.curves else []
    return found


def samples(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each model and step count the sample grids of all runs that have one."""
    grids: dict[tuple[str, int], list] = {}
    for run in runs:
        for picture in page_pictures.collect(run.results):
            if picture.kind == "samples" and picture.key[0]:
                grids.setdefault(picture.key, []).append((run.name, picture))
    keys = sorted(grids, key=lambda key: _rank((*key, None)))
    return [{"title": metric_names.title(*key), "grids": grids[key]} for key in keys]


def training_settings(runs: Sequence[Run]) -> Table | None:
    """Fields of the configs in which the runs differ; None unless two of them have configs."""
    configs = [run.results.training or run_folders.trained(run.results.folder) for run in runs]
    known = [config for config in configs if config]
    if len(known) < 2:
        return None
    lines = []
    for name in dict.fromkeys(name for config in known for name in config):
        # A title and where a copy of the data lies say nothing of the training.
        values = {str(config.get(name, metric_names.MISSING)) for config in known}
        if len(values) > 1 and name not in ("title", "data.directory", "compilation_cache"):
            texts = (str(config.get(name, metric_names.MISSING)) for config in configs)
            lines.append(Line(name, [Cell(text) for text in texts]))
    headings = [Heading("config"), *(Heading(run.name) for run in runs)]
    return Table("Training settings that differ", headings, lines, numbers=False)


def settings(runs: Sequence[Run]) -> Table:
    """Return the settings and provenance in which the runs differ, a column for each run."""
    entries = [
        {"title": run.results.title, **dict(page_tables.provenance_entries(run.results))}
        for run in runs
    ]
    names = dict.fromkeys(name for entry in entries for name in entry)
    lines = []
    for name in names:
        texts = [entry.get(name, metric_names.MISSING) for entry in entries]
        if len(set(texts)) > 1:
            lines.append(Line(name, [Cell(text) for text in texts]))
    headings = [Heading("entry"), *(Heading(run.name) for run in runs)]
    return Table("Settings and provenance that differ", headings, lines, numbers=False)
