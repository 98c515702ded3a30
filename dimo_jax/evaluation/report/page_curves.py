"""Which curves a page has: over step counts, classes, temperatures and training."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dimo_jax.evaluation.metrics import names as metric_names
from dimo_jax.evaluation.metrics.rows import Row
from dimo_jax.evaluation.report import page_charts, page_tables
from dimo_jax.evaluation.report.page_charts import Chart, Level, Series
from dimo_jax.evaluation.report.schema import Results, finite

TEACHER, GENERATOR, REAL = 0, 1, 2
# Of sampler fields, those that curves are drawn over.
TEMPERATURES = ("temperature", "choice_temperature")
# Of the columns of the headline table, so many have a chart.
MAX_CHARTS = 6


def over_steps(results: Results) -> list[Chart]:
    """For each headline metric: the teacher over its step counts, generator and test split."""
    charts = []
    for name in page_tables.headline_names(results)[:MAX_CHARTS]:
        teacher = best_of_each(results.rows, "teacher", name)
        if len({row.steps for row in teacher}) < 2:
            continue
        generator, levels = best_of_each(results.rows, "generator", name), []
        curves = [Series("teacher", _points(teacher, name), TEACHER)]
        if len(generator) > 1:
            curves.append(Series("generator", _points(generator, name), GENERATOR))
        one_level = (generator if len(generator) == 1 else [], GENERATOR)
        for found, style in (one_level, (best_of_each(results.rows, "test_split", name), REAL)):
            for row in found[:1]:
                levels.append(Level(row.title, row.known(name), row.metrics[name].std, style))
        shown = metric_names.metric(name)
        charts.append(
            Chart(
                f"{shown.heading}{_direction(name)}",
                curves,
                levels=levels,
                x_label="steps of the teacher" if len(curves) == 1 else "steps",
                x_values=[(float(row.steps), str(row.steps)) for row in teacher],
                x_log=True,
                y_log=not shown.is_share,
                from_zero=True,
            )
        )
    return [chart for chart in charts if chart.curves]


def best_of_each(rows: Iterable[Row], model: str, name: str) -> list[Row]:
    """Return a model's rows with this metric, in rising steps.

    Of rows with equal steps the best one.
    """
    chosen: dict[int, Row] = {}
    factor = -1 if metric_names.metric(name).better == "higher" else 1
    for row in rows:
        if row.model != model or row.mean(name) is None:
            continue
        kept = chosen.get(row.steps)
        if kept is None or factor * row.known(name) < factor * kept.known(name):
            chosen[row.steps] = row
    return [chosen[steps] for steps in sorted(chosen)]


def _points(rows: Sequence[Row], name: str) -> list[tuple[float, float | None, float | None]]:
    return [(float(row.steps), row.mean(name), row.metrics[name].std) for row in rows]


def over_temperature(results: Results) -> list[Chart]:
    """Draw metrics over the sampler's temperature, where rows or swept samplers differ in it."""
    names = page_tables.headline_names(results)[:MAX_CHARTS]
    charts = _temperature_charts(results.rows, names, "")
    swept = [candidate.row for candidate in results.sweep]
    names = page_tables.sweep_names(results)
    return charts + _temperature_charts(swept, names, "of the samplers that were compared")


def _temperature_charts(rows: Sequence[Row], names: Sequence[str], note: str) -> list[Chart]:
    charts = []
    for field in TEMPERATURES:
        groups: dict[str, list[Row]] = {}
        for row in rows:
            if finite(row.sampler.get(field)) is not None:
                rest = {k: v for k, v in row.sampler.items() if k != field}
                key = json.dumps([row.title, rest], sort_keys=True, default=str)
                groups.setdefault(key, []).append(row)
        chosen = [
            sorted(group, key=lambda row: row.sampler[field])
            for group in groups.values()
            if len({row.sampler[field] for row in group}) > 1
        ]
        titles = _group_titles(chosen, field)
        for name in names[:MAX_CHARTS]:
            series = [
                Series(title, _points_over(group, field, name), style)
                for style, (title, group) in enumerate(zip(titles, chosen, strict=True))
            ]
            shown = metric_names.metric(name)
            title = f"{shown.heading}{_direction(name)}"
            charts.append(Chart(title, series, field.replace("_", " "), note=note))
    return [chart for chart in charts if chart.curves]


def _points_over(rows: Sequence[Row], field: str, name: str) -> list[tuple]:
    return [
        (float(row.sampler[field]), row.mean(name), row.metrics[name].std)
        for row in rows
        if name in row.metrics
    ]


def _group_titles(groups: Sequence[Sequence[Row]], field: str) -> list[str]:
    """Model and steps, and of the sampler's other fields those in which groups differ."""
    samplers = [rows[0].sampler for rows in groups]
    fields = dict.fromkeys(name for sampler in samplers for name in sampler if name != field)
    varying = [name for name in fields if len({str(sampler.get(name)) for sampler in samplers}) > 1]
    return [
        ", ".join(
            [rows[0].title]
            + [f"{name.replace('_', ' ')} {rows[0].sampler[name]}" for name in varying
               if name in rows[0].sampler]
        )
        for rows in groups
    ]  # fmt: skip


def over_classes(results: Results) -> list[Chart]:
    """Per-class metrics of the teacher's most steps, the generator and the test split."""
    rows = results.per_class.rows
    teacher = max((row.steps for row in rows if row.model == "teacher"), default=None)
    chosen = [row for row in rows if row.model != "teacher" or row.steps == teacher]
    styles = {"teacher": TEACHER, "generator": GENERATOR, "test_split": REAL}
    charts = []
    for name in metric_names.in_order(name for row in chosen for name in row.per_class):
        number = max((len(row.per_class.get(name, ())) for row in chosen), default=0)
        if number > page_tables.MAX_CLASSES:
            continue
        names = page_tables.class_names(results, number)
        series = [
            Series(
                row.title,
                [(float(i), x, None) for i, x in enumerate(page_tables.class_means(row, name))],
                styles.get(row.model, 3),
                lines=False,
            )
            for row in chosen
        ]
        shown = metric_names.metric(name)
        few = number <= 12
        charts.append(
            Chart(
                f"{shown.heading}{_direction(name)}",
                series,
                x_label="class",
                x_values=[(float(i), text[:3]) for i, text in enumerate(names)] if few else (),
                from_zero=shown.better == "lower",
            )
        )
    return [chart for chart in charts if chart.curves]


def over_training(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
) -> tuple[dict[str, list[Chart]], list[str]]:
    """Return every metric of metrics.jsonl but times, stage by stage.

    Args:
        runs: the records of each run by its name; a single run needs no name, "".

    Returns:
        stage -> charts, evaluations first, and what was left out since it never changes.
    """
    stages: dict[str, dict[str, dict[str, list]]] = {}
    for run, records in runs.items():
        for record in records:
            step, stage = finite(record.get("step")), str(record.get("stage", "run"))
            if step is None:
                continue
            for name, value in record.items():
                if name in ("stage", "step") or name.startswith("time/"):
                    continue
                of_run = stages.setdefault(stage, {}).setdefault(name, {})
                of_run.setdefault(run, []).append((step, finite(value)))
    charts, constant = {}, []
    for stage, by_name in stages.items():
        charts[stage] = []
        for name in sorted(by_name, key=_training_order):
            values = {y for points in by_name[name].values() for _, y in points if y is not None}
            if len(values) > 1 and (chart := _training_chart(name, by_name[name])).curves:
                charts[stage].append(chart)
            elif values:
                number = page_charts.number(values.pop())
                constant.append(f"{stage}: {_training_name(name)} {number}")
    return {stage: drawn for stage, drawn in charts.items() if drawn}, constant


def _training_chart(name: str, by_run: Mapping[str, list]) -> Chart:
    series, sizes = [], []
    for style, (run, points) in enumerate(by_run.items()):
        points, size = page_charts.thinned(sorted(points, key=lambda point: point[0]))
        sizes.append(size)
        known = sum(y is not None for _, y, _ in points)
        title = run or _training_name(name)
        series.append(Series(title, points, style, marks=known < 12))
    note = f"each point is the mean of {max(sizes)} records" if max(sizes) > 1 else ""
    shown = _training_name(name)
    # A schedule that ends near zero would take all of a logarithmic axis for its last steps.
    return Chart(shown, series, "step", note=note, y_log="learning_rate" not in name)


def _training_name(name: str) -> str:
    group, _, rest = name.partition("/")
    return (rest if group == "train" and rest else name).replace("_", " ").replace("/", ": ")


def _training_order(name: str) -> tuple:
    """Sort evaluations, losses, everything else, learning rates; then by name."""
    kinds = ("eval", "loss", "divergence")
    rank = next((i for i, kind in enumerate(kinds) if kind in name), len(kinds))
    return (rank + ("learning_rate" in name), name)


def _direction(name: str) -> str:
    better = metric_names.metric(name).better
    return f" ({better} is better)" if better else ""
