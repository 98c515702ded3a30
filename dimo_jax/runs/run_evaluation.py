"""A finished run judged: samples of generator and teacher, their figures, pictures and speed."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dimo_jax.common import readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.conditions import text_encoder
from dimo_jax.evaluation import measure
from dimo_jax.evaluation.features.feature_store import Extractor, FeatureStore
from dimo_jax.evaluation.images import image_sets
from dimo_jax.evaluation.images.image_set import ImageSet
from dimo_jax.evaluation.metrics.protocols import Protocol
from dimo_jax.evaluation.references import Reference
from dimo_jax.evaluation.report import showcase
from dimo_jax.generation import drawing
from dimo_jax.parallel import distributed
from dimo_jax.profiling import sampler_speed, step_speed
from dimo_jax.runs import run_samples
from dimo_jax.runs.run_samples import SampleSet
from dimo_jax.training import load_models

SAMPLES_FOLDER = "samples"


class Yardstick(NamedTuple):
    """What all sets are measured with.

    Attributes:
        reference: what they are compared with.
        extractor: the feature network.
        protocol: how.
        metrics: which.
        folder: where features are kept.
    """

    reference: Reference
    extractor: Extractor
    protocol: Protocol
    metrics: Sequence[str]
    folder: Path

    def judge(
        self, samples: ImageSet, store: str = "samples", **row: Any
    ) -> tuple[dict[str, Any], showcase.Look] | tuple[None, None]:
        """Return a row of the result and what is shown of it; every process calls it.

        Args:
            samples: the set.
            store: the set's name among the kept features.
            row: "model", "steps" and "sampler" of measure.evaluate_samples.

        Returns:
            Both on the lead, nothing on the other processes.

        Raises:
            InputError: as measure.evaluate_samples.
        """
        found = measure.evaluate_samples(
            samples,
            self.reference,
            self.extractor,
            self.protocol,
            self.metrics,
            self.folder,
            store=store,
            **row,
        )
        if found is None:
            return None, None
        # All of them are on disk by now: nothing is computed again.
        store = FeatureStore(self.folder, samples, self.extractor, store)
        real, features = self.reference.images, self.reference.features
        if features is None and real is not None and "prdc" in self.metrics:
            features = FeatureStore(self.folder, real, self.extractor, "reference").load("2048")
        return found, showcase.look(found, samples, store.load("2048"), features, real)


def check_space(folder: Path, asked: Sequence[SampleSet], num: int, image_bytes: int) -> str:
    """Say what the samples take on the disk.

    Args:
        folder: where they go; made if need be.
        asked: the sets.
        num: samples in each.
        image_bytes: of one.

    Raises:
        InputError: there is less room than that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # While a set's ranges become its file, both are there.
    needed, free = num * image_bytes * (len(asked) + 1), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{len(asked)} sets of {num} samples take {needed / 1e9:.1f} GB in {folder}, where "
            f"{free / 1e9:.1f} GB are free; give fewer, or another --output"
        )
    return f"{len(asked)} sets of {num} samples, {needed / 1e9:.1f} GB in {folder}"


def judge_run(
    workdir: AnyPath,
    asked: Sequence[SampleSet],
    yardstick: Yardstick,
    folder: Path,
    *,
    num: int,
    seed: int,
    batch_size: int | None,
    clock: step_speed.Clock | None = None,
) -> tuple[list[dict[str, Any]], list[showcase.Look]]:
    """Draws and judges one set after the other; what is on disk already is not done again.

    Args:
        workdir: of the run.
        asked: of run_samples.sets_of.
        yardstick: what they are measured with.
        folder: of the results; the samples go to a folder in it.
        num: samples in a set.
        seed: of every set.
        batch_size: images in a batch; None: as drawing.images_at_once.
        clock: times the samplers too; None: not timed.

    Returns:
        The rows, and what is shown: of the rows of one model and number of steps, that with the
        least FID. Nothing on processes that are not the lead.

    Raises:
        InputError: as run_samples.draw and measure.evaluate_samples.
    """
    rows, looks = [], {}
    for drawn in run_samples.draw(
        asked, folder / SAMPLES_FOLDER, num=num, seed=seed, batch_size=batch_size
    ):
        one = drawn.asked
        row, look = yardstick.judge(
            image_sets.open_set(str(drawn.path)),
            drawn.path.stem,
            model=one.model,
            steps=one.steps,
            sampler=drawn.sampler,
        )
        if row is not None:
            rows.append(row)
            looks.setdefault((one.model, one.steps), []).append((_rank(row), len(rows), look))
    if clock is not None and distributed.is_lead():
        _add_speed(workdir, asked[0].tokenizer.parent, rows, batch_size, clock)
    return rows, [min(several)[-1] for several in looks.values()]


def _rank(row: Mapping[str, Any]) -> float:
    return row["metrics"].get("fid", {"mean": 0.0})["mean"]


def _add_speed(
    workdir: AnyPath,
    generator: AnyPath,
    rows: Sequence[dict[str, Any]],
    batch_size: int | None,
    clock: step_speed.Clock,
) -> None:
    """Time each sampler at batch 1 and at the batch size, whole and in parts."""
    config = timed_config(workdir, generator)
    models = step_speed.open_models(config)
    largest = drawing.images_at_once(models.network.num_tokens, batch_size)
    sizes, known = list(dict.fromkeys([1, largest])), {}
    for row in rows:
        guidance = float(row["sampler"].get("guidance", 1.0))
        key = (row["model"], row["steps"], guidance)
        if key not in known:
            clock.note(f"times the {row['model']}, {row['steps']} steps")
            known[key] = _timed(config, models, clock, sizes, *key)
        one, many = known[key][0], known[key][-1]
        row["speed"] = {"latency": one, "throughput": many}
        row["metrics"] |= {
            "latency_seconds": _figure(one["latency_seconds"]["whole"]["median"]),
            "images_per_second": _figure(many["images_per_second"]),
        }


def _timed(
    config: Mapping[str, Any],
    models: step_speed.Models,
    clock: step_speed.Clock,
    sizes: Sequence[int],
    model: str,
    steps: int,
    guidance: float,
) -> list[dict[str, Any]]:
    # The generator is the same network as the teacher, and no time depends on its weights.
    if model == "generator":
        return sampler_speed.sample(config, models, clock, sizes)
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


def _figure(value: float) -> dict[str, float]:
    return {"mean": value, "std": 0.0}
