"""An evaluation as one page: report.html, which needs no other file, no script and no network.

The template and its style are in `templates`; Jinja escapes whatever is put into them.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from dimo_jax.common.files import AnyPath, write_file
from dimo_jax.evaluation.metrics import names as metric_names
from dimo_jax.evaluation.metrics.protocols import MIN_COMPARABLE
from dimo_jax.evaluation.metrics.rows import Row
from dimo_jax.evaluation.report import (
    page_curves,
    page_pictures,
    page_tables,
    run_folders,
    schema,
)
from dimo_jax.evaluation.report.schema import Results, finite

FILE_NAME = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Fact:
    """A name and a value at the head of the page."""

    name: str
    value: str
    note: str = ""


def write(folder: AnyPath | str, *, title: str, workdir: AnyPath | str | None = None) -> AnyPath:
    """Write report.html beside a results.json.

    What the folder does not hold is left out: pictures/*.png, and metrics.jsonl in the workdir.

    Args:
        folder: holds results.json, see schema.
        title: the page's heading.
        workdir: of the run; None looks for metrics.jsonl in the folder and one above.

    Returns:
        The path of report.html; one that exists is replaced.

    Raises:
        InputError: if results.json is missing or not as schema has it, a picture or a line of
            metrics.jsonl cannot be read, or the page cannot be written.
    """
    results = schema.read(folder)
    folder = results.folder
    text = html(results, title, run_folders.records(folder, workdir))
    return write_file(folder / FILE_NAME, text.encode(errors="replace"))


def html(results: Results, title: str, records: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the text of report.html.

    Args:
        results: what was measured.
        title: the page's heading.
        records: of metrics.jsonl.
    """
    pictures = page_pictures.collect(results)
    training, constant = page_curves.over_training({"": records})
    return render(
        "page.html",
        title=title,
        lead=lead(results),
        tiles=tiles(results),
        facts=facts(results),
        warnings=warnings(results),
        results=results,
        steps_charts=page_curves.over_steps(results),
        headline=page_tables.headline(results),
        others=page_tables.others(results),
        explained=page_tables.explained(results),
        samples=sorted(
            (picture for picture in pictures if picture.kind == "samples"), key=_sample_order
        ),
        same_labels=same_labels(pictures),
        picture_seed=picture_seed(results),
        overview=[picture for picture in pictures if picture.kind == "all"],
        neighbours=[picture for picture in pictures if picture.kind == "neighbours"],
        originals=[picture for picture in pictures if picture.kind == "originals"],
        ends=ends(results, pictures),
        order=results.extremes.by,
        class_charts=page_curves.over_classes(results),
        classes=page_tables.classes(results),
        class_samples=results.per_class.num_samples,
        class_metrics=[
            (metric_names.metric(name).heading, text)
            for name, text in results.per_class.metrics.items()
        ],
        temperature_charts=page_curves.over_temperature(results),
        training=training,
        constant=constant,
        sweep=page_tables.sweep(results),
        provenance=page_tables.provenance(results),
        of_each_row=page_tables.of_each_row(results),
    )


def render(template: str, **values: Any) -> str:
    """Return a template of this package with these values, each escaped."""
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    return _environment().get_template(template).render(style=style, **values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["groupby_order"] = _groups
    return environment


def _groups(lines: Sequence[page_tables.Line]) -> list[dict[str, Any]]:
    """Consecutive lines of one group together, in their order."""
    return [
        {"name": name, "lines": list(group)}
        for name, group in itertools.groupby(lines, key=lambda line: line.group)
    ]


def primary(results: Results) -> tuple[str, Row] | None:
    """Return the first metric with a direction that the generator has, and its best row."""
    for name in page_tables.headline_names(results):
        rows = page_curves.best_of_each(results.rows, "generator", name)
        if rows and metric_names.metric(name).better:
            return name, rows[0]
    return None


def lead(results: Results) -> list[str]:
    """Return sentences that say how the generator stands to the teacher; [] without either."""
    if (found := primary(results)) is None:
        return []
    name, generator = found
    shown = metric_names.metric(name)
    noun = shown.noun or shown.heading
    calls = "one step" if generator.steps == 1 else f"{generator.steps} steps"
    sentences = [
        f"{noun}, {shown.better} is better: in {calls} the generator has "
        f"{_unbroken(_text(generator, name))}."
    ]
    teacher = page_curves.best_of_each(results.rows, "teacher", name)
    if not teacher:
        return sentences
    better = [
        row for row in teacher if _beats(row.known(name), generator.known(name), shown.better)
    ]
    if better:
        sentences.append(
            f"The teacher needs {metric_names.count_steps(better[0].steps)} for a better value: "
            f"{_unbroken(_text(better[0], name))}."
        )
    else:
        best = min(teacher, key=lambda row: _signed(row.known(name), shown.better))
        sentences.append(
            f"No step count of the teacher that was measured does better; its best is "
            f"{_unbroken(_text(best, name))}, in {metric_names.count_steps(best.steps)}."
        )
    return sentences


def tiles(results: Results) -> list[Fact]:
    """Return the figures in large: generator, the teacher's least steps and best, real images."""
    if (found := primary(results)) is None:
        return []
    name, generator = found
    better = metric_names.metric(name).better
    teacher = page_curves.best_of_each(results.rows, "teacher", name)
    shown = [generator]
    if teacher:
        best = min(teacher, key=lambda row: _signed(row.known(name), better))
        shown += [best] if best is teacher[0] else [best, teacher[0]]
    shown += page_curves.best_of_each(results.rows, "test_split", name)
    noun = metric_names.metric(name).heading
    return [Fact(row.title, _text(row, name), noun) for row in shown]


def facts(results: Results) -> list[Fact]:
    """Return what was measured and how: protocol, N, seeds, spread."""
    found = []
    if name := results.protocol.get("name"):
        found.append(Fact("protocol", str(name), str(results.protocol.get("about", ""))))
    if results.num_samples is not None:
        found.append(Fact("samples in each measurement", f"{results.num_samples:,}"))
    seeds = results.setting("seeds", "seed")
    if seeds is not None:
        seeds = seeds if isinstance(seeds, list) else [seeds]
        spread = "± is the standard deviation over them" if len(seeds) > 1 else ""
        name = "sampling seeds" if len(seeds) > 1 else "sampling seed"
        found.append(Fact(name, ", ".join(map(str, seeds)), spread))
    if (neighbours := results.setting("num_neighbours", "k")) is not None:
        found.append(Fact("k of precision to coverage", str(neighbours)))
    wall = finite(results.provenance.get("wall_seconds"))
    if wall is not None:
        found.append(Fact("took", f"{wall / 60:.1f} min" if wall >= 90 else f"{wall:.1f} s"))
    return found


def warnings(results: Results) -> list[str]:
    """Return what a reader must know before the figures are compared with others."""
    found = []
    number = results.num_samples
    if (
        "fid" in map(metric_names.known_as, results.metric_names)
        and number
        and number < MIN_COMPARABLE
    ):
        found.append(
            f"These figures are of {number:,} samples. A FID of so few is larger than one of "
            "50,000 and does not compare with it."
        )
    for row in results.rows:
        found += [f"{row.title}: {text}" for text in row.warnings]
    return found


def same_labels(pictures: Sequence[page_pictures.Picture]) -> str:
    """Return the labels that all sample grids share, as text; '' if they differ or are unknown."""
    labels = {picture.labels for picture in pictures if picture.kind == "samples"}
    return labels.pop() if len(labels) == 1 else ""


def picture_seed(results: Results) -> int | None:
    """Return the sampling seed of the grids; None if it is unknown, or not the same for all."""
    seeds = {picture.seed for picture in results.pictures} - {None}
    return seeds.pop() if len(seeds) == 1 else None


def ends(results: Results, pictures: Sequence[page_pictures.Picture]) -> list[dict[str, Any]]:
    """Return the worst and the best samples.

    Their pictures, and a line for each of a tile's values.
    """
    found = []
    for kind in ("worst", "best"):
        for picture in (entry for entry in pictures if entry.kind == kind):
            items = getattr(results.extremes, kind)
            names = {"label": "asked for", "predicted": "seen as", "value": "distance"}
            columns = {x: [getattr(item, x) for item in items] for x in names}
            rows = [
                (names[x], [_short(value) for value in values])
                for x, values in columns.items()
                if values and None not in values
            ]
            aligned = len(items) == picture.columns
            found.append({"kind": kind, "picture": picture, "rows": rows if aligned else []})
    return found


def _sample_order(picture: page_pictures.Picture) -> tuple[int, int]:
    """Return the generator beside real images, then the teacher's step counts."""
    order = ["generator", "test_split", "teacher"]
    model, steps = picture.key
    return (order.index(model) if model in order else len(order)), steps


def _short(value: Any) -> str:
    number = finite(value)
    return str(value) if number is None or isinstance(value, int) else f"{number:.2g}"


def _text(row: Row, name: str) -> str:
    return metric_names.value(name, row.metrics[name].mean, row.metrics[name].std)


def _unbroken(text: str) -> str:
    """Return a value that stays on one line."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _signed(value: float, better: str) -> float:
    return -value if better == "higher" else value


def _beats(value: float, other: float, better: str) -> bool:
    return _signed(value, better) < _signed(other, better)
