"""Samples of a finished run's generator and teacher: their figures, pictures and speed."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dimo_jax.common import readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.conditions import text_encoder
from dimo_jax.evaluation import shown
from dimo_jax.evaluation.evaluate_images import Evaluator
from dimo_jax.evaluation.images import image_sets
from dimo_jax.evaluation.metrics.rows import Row, Value
from dimo_jax.evaluation.shown import Shown
from dimo_jax.generation import drawing
from dimo_jax.parallel import distributed
from dimo_jax.profiling import sampler_speed, step_speed
from dimo_jax.runs import run_samples
from dimo_jax.runs.run_samples import SampleSet
from dimo_jax.training import load_models

SAMPLES_FOLDER = "samples"


def check_space(folder: Path, requested: Sequence[SampleSet], num: int, image_bytes: int) -> str:
    """Say what the samples take on the disk.

    Args:
        folder: where they go; made if need be.
        requested: the sets.
        num: samples in each.
        image_bytes: of one.

    Raises:
        InputError: there is less room than that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # While a set's ranges become its file, both are there.
    needed, free = num * image_bytes * (len(requested) + 1), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{len(requested)} sets of {num} samples take {needed / 1e9:.1f} GB in {folder}, where "
            f"{free / 1e9:.1f} GB are free; give fewer, or another --output"
        )
    return f"{len(requested)} sets of {num} samples, {needed / 1e9:.1f} GB in {folder}"


def evaluate_run(
    workdir: AnyPath,
    requested: Sequence[SampleSet],
    evaluator: Evaluator,
    folder: Path,
    *,
    num: int,
    seed: int,
    batch_size: int | None,
    clock: step_speed.Clock | None = None,
) -> tuple[list[Row], list[Shown]]:
    """Draw and measure one set after the other; what is on disk already is not done again.

    Args:
        workdir: of the run.
        requested: of run_samples.sets_of.
        evaluator: how they are measured.
        folder: of the results; the samples go to a folder in it.
        num: samples in a set.
        seed: of every set.
        batch_size: images in a batch; None: as drawing.images_at_once.
        clock: times the samplers too; None: not timed.

    Returns:
        The rows, and what is shown: of the rows of one model and number of steps, that with the
        least FID. Nothing on processes that are not the lead.

    Raises:
        InputError: as run_samples.draw and Evaluator.evaluate.
    """
    rows, pictures = [], {}
    for drawn in run_samples.draw(
        requested, folder / SAMPLES_FOLDER, num=num, seed=seed, batch_size=batch_size
    ):
        one, role = drawn.requested, drawn.path.stem
        images = image_sets.open_set(str(drawn.path))
        row = evaluator.evaluate(
            images, role, model=one.model, steps=one.steps, sampler=drawn.sampler
        )
        if row is not None:
            taken = shown.of_set(evaluator, images, row, role)
            pictures.setdefault((one.model, one.steps), []).append((_rank(row), len(rows), taken))
            rows.append(row)
    if clock is not None and distributed.is_lead():
        rows = _with_speed(workdir, requested[0].tokenizer.parent, rows, batch_size, clock)
    return rows, [min(several)[-1] for several in pictures.values()]


def _rank(row: Row) -> float:
    return row.mean("fid") or 0.0


def _with_speed(
    workdir: AnyPath,
    generator: AnyPath,
    rows: Sequence[Row],
    batch_size: int | None,
    clock: step_speed.Clock,
) -> list[Row]:
    """Time each row's sampler at batch 1 and at the batch size, whole and in parts."""
    config = timed_config(workdir, generator)
    models = step_speed.open_models(config)
    largest = drawing.images_at_once(models.network.num_tokens, batch_size)
    sizes, known, timed = list(dict.fromkeys([1, largest])), {}, []
    for row in rows:
        key = (row.model, row.steps, float(row.sampler.get("guidance", 1.0)))
        if key not in known:
            clock.note(f"times the {row.model}, {row.steps} steps")
            known[key] = _timed(config, models, clock, sizes, *key)
        one, many = known[key][0], known[key][-1]
        metrics = {
            **row.metrics,
            "latency_seconds": Value(one["latency_seconds"]["whole"]["median"]),
            "images_per_second": Value(many["images_per_second"]),
        }
        rest = {**row.rest, "speed": {"latency": one, "throughput": many}}
        timed.append(replace(row, metrics=metrics, rest=rest))
    return timed


def _timed(
    config: Mapping[str, Any],
    models: step_speed.Models,
    clock: step_speed.Clock,
    sizes: Sequence[int],
    model: str,
    steps: int,
    guidance: float,
) -> list[dict[str, Any]]:
    # The generator is the teacher's network, or a mixture of it; no time depends on its weights.
    if model == "generator":
        return sampler_speed.sample(config, models, clock, sizes, [steps])
    return sampler_speed.teacher_sample(config, models, clock, sizes, [steps], guidance)


def timed_config(workdir: AnyPath, generator: AnyPath) -> dict[str, Any]:
    """Return the config of a run, with the bundles that it made.

    Args:
        workdir: of the run.
        generator: the bundle of its generator, finished or of a checkpoint.
    """
    config = readers.json_object(workdir / "config.json")
    config["teacher"]["bundle"] = config["teacher"]["bundle"] or str(workdir / "teacher")
    config["tokenizer"]["bundle"] = str(generator / "tokenizer")
    if load_models.is_text(config):
        config["text_encoder"] = {"bundle": str(text_encoder.encoder_of(generator))}
    return config
