"""An evaluation of digits as files: results.json, report.md and the pictures that it shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from dimo_jax.common import files
from dimo_jax.common.files import AnyPath, write_file
from dimo_jax.evaluation.evaluate_models import Evaluation
from dimo_jax.evaluation.metrics import by_class
from dimo_jax.evaluation.metrics import names as metrics
from dimo_jax.evaluation.metrics.prdc import NAMES as IN_PIXELS
from dimo_jax.evaluation.metrics.rows import Row
from dimo_jax.evaluation.report import page_tables, schema, showcase
from dimo_jax.evaluation.report.schema import Candidate, Classes, Results
from dimo_jax.evaluation.shown import COLUMNS, Shown

MAX_COLUMNS = 20
PROTOCOL = "digits"


def write(
    folder: AnyPath | str,
    evaluation: Evaluation,
    *,
    title: str,
    provenance: Mapping[str, Any],
    class_names: Sequence[str] = (),
) -> list[AnyPath]:
    """Write results.json, report.md and pictures/*.png; files of these names are replaced.

    Args:
        folder: where; made if it is not there.
        evaluation: what was measured.
        title: the report's first line.
        provenance: as schema.Results.
        class_names: of the labels; none: their numbers.

    Returns:
        The paths written, report.md last, so that a report only ever names files that exist.

    Raises:
        InputError: if the folder cannot be written.
        ValueError: if provenance lacks an entry or a number is not finite.
    """
    columns = columns_of(evaluation.shown)
    drawn = showcase.draw(evaluation.shown, columns, by_class.ORDER, True, class_names)
    results = results_of(evaluation, drawn, title, provenance, class_names)
    folder = files.path(folder)
    paths = [schema.write(folder, results), *drawn.save(folder)]
    report = markdown(results, columns)
    return [*paths, write_file(folder / "report.md", report.encode())]


def results_of(
    evaluation: Evaluation,
    drawn: showcase.Drawn,
    title: str,
    provenance: Mapping[str, Any],
    class_names: Sequence[str] = (),
) -> Results:
    """Return an evaluation as results.json has it."""
    rows, settings, texts = evaluation.rows, evaluation.settings, evaluation.shown[0].texts
    num_classes = len(rows[0].per_class["accuracy"])
    return Results(
        rows,
        provenance,
        title,
        protocol={"name": PROTOCOL, **({"conditions": "texts"} if texts else {})},
        settings=vars(settings),
        metrics={
            name: metrics.metric(name).explanation + (", in pixels" if name in IN_PIXELS else "")
            for name in rows[0].metrics
        },
        sweep=[Candidate(*entry) for entry in evaluation.sweep],
        per_class=Classes(
            rows,
            class_names or [str(label) for label in range(num_classes)],
            settings.num_samples // num_classes if evaluation.balanced else None,
            {name: metrics.metric(name).of_class for name in rows[0].per_class},
        ),
        extremes=drawn.extremes,
        pictures=drawn.entries,
    )


def columns_of(shown: Sequence[Shown]) -> int:
    """Return one column for each class where they fit, so that a column holds one label.

    Few columns where there are texts, which are longer than labels.
    """
    labels = shown[0].labels
    if shown[0].texts:
        return COLUMNS
    return MAX_COLUMNS if labels is None else min(len(set(labels.tolist())), MAX_COLUMNS)


def markdown(results: Results, columns: int) -> str:
    """Return the text of report.md.

    Args:
        results: what was found.
        columns: of the pictures.
    """
    settings = results.settings
    seeds = ", ".join(map(str, settings["seeds"]))
    balanced = results.per_class.num_samples is not None
    balance = "balanced over the classes" if balanced else "of each class its share"
    if named(results) == "texts":
        balance = "of the test split's texts in turn"
    spread = f"mean ± standard deviation over the sampling seeds {seeds}"
    explained = [
        f"* {name}: {text}" for name, _, text in page_tables.explained(results, results.metrics)
    ]
    sections = [
        f"# {results.title}",
        *headline(results.rows),
        "## Results",
        f"{settings['num_samples']} samples in each measurement, {balance}, against the training "
        f"split; {spread}; k = {settings['num_neighbours']}. The test split is the floor: real "
        "images, measured like samples (but fewer, which costs it some).",
        page_tables.markdown(page_tables.every_metric(results), mark_best=False),
        "\n".join(explained),
        "## Pictures",
        f"The same {named(results)} everywhere, sampling seed {settings['seeds'][0]}, the first "
        "images as they came.",
        "![samples of all models](pictures/all.png)",
        "More of each:",
        _picture_table(results, columns),
        "The generator's samples, and below each the training image nearest to it in pixels:",
        "![nearest training images](pictures/neighbours.png)",
        *_extremes_section(results),
        "## The teacher's samplers",
        f"Compared with {settings['sweep_num_samples']} samples of sampling seed "
        f"{settings['sweep_seed']}; the least sum of both distances was chosen. Fewer samples make "
        "every distance larger than in the table above. Step counts not swept take the choice of "
        "the nearest one.",
        page_tables.markdown(page_tables.sweep(results)),
        "## Provenance",
        page_tables.markdown(page_tables.provenance(results)),
    ]
    return "\n\n".join(sections) + "\n"


def headline(rows: Sequence[Row]) -> list[str]:
    """Return one sentence on each Fréchet distance: the generator against the teacher's best."""
    sentences = []
    for metric, where in (("frechet_features", "in features"), ("frechet_pixels", "in pixels")):
        generator = next(row for row in rows if row.model == "generator")
        teachers = [row for row in rows if row.model == "teacher"]
        best = min(teachers, key=lambda row: row.known(metric))
        factor = generator.known(metric) / best.known(metric)
        ours, theirs = (
            metrics.value(metric, x.mean(metric), x.metrics[metric].std) for x in (generator, best)
        )
        steps = "one step" if generator.steps == 1 else f"{generator.steps} steps"
        sentences.append(
            f"The Fréchet distance {where} of the generator in {steps} is {ours}, the teacher's "
            f"best {theirs} ({metrics.count_steps(best.steps)}): "
            f"{factor:.2f} times as much."
        )
    return sentences


def _extremes_section(results: Results) -> list[str]:
    """Return the worst and the best samples, each above the image that it was compared with."""
    if not results.extremes.worst:
        return []
    return [
        f"Of the generator's {results.settings['num_samples']} samples of that seed the worst and "
        f"the best, by {results.extremes.by}; that image is below each:",
        "![worst samples](pictures/worst.png)",
        "![best samples](pictures/best.png)",
    ]


def named(results: Results) -> str:
    """Return what the samples are of: "labels", or "texts" of the test split."""
    return results.protocol.get("conditions", "labels")


def _picture_table(results: Results, columns: int) -> str:
    grids = [picture for picture in results.pictures if picture.kind == "samples"]
    lines = [
        f"|  | {named(results)} " + ", ".join(map(str, grids[0].labels[:columns])) + " |",
        "| --- | --- |",
    ]
    for grid in grids:
        title = metrics.title(grid.model, grid.steps)
        lines.append(f"| {title} | ![{title}]({grid.file}) |")
    return "\n".join(lines)
