"""What is measured, in which order: the teacher's sweep, then every model with every seed.

Samples come from functions, so the protocol knows neither networks nor samplers; its result is a
function of the seeds in the settings. Each distance is between the samples and the whole training
split, each in percent of that split's total variance.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.features.classifier import FeatureNetwork
from dimo_jax.evaluation.measurements import METRICS, Data, Images, Labels, Measured, Reference
from dimo_jax.evaluation.metrics import by_class, frechet
from dimo_jax.evaluation.metrics import names as metric_names
from dimo_jax.evaluation.metrics.by_class import Extremes

Sampler = dict[str, Any]
# (work done, work in all, what is being done); work is in images times network calls.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ProtocolSettings:
    """What is run.

    Attributes:
        num_samples: images in each measurement; labels are cycled, so classes are balanced.
        seeds: sampling seeds; mean and spread are over them.
        teacher_steps: step counts at which the teacher is measured.
        sweep_steps: step counts at which its samplers are compared; any other step count takes the
            choice of the nearest of these, by ratio, of two the larger.
        sweep_num_samples: images for each candidate.
        sweep_seed: sampling seed of the sweep; none of `seeds`, or the choice would be judged on
            the samples it was made with.
        num_neighbours: k of precision, recall, density and coverage.
        num_pictures: images of each model kept for the report, of the first seed.

    Raises:
        InputError: on a value outside its range.
    """

    num_samples: int
    seeds: tuple[int, ...]
    teacher_steps: tuple[int, ...]
    sweep_steps: tuple[int, ...]
    sweep_num_samples: int
    sweep_seed: int
    num_neighbours: int
    num_pictures: int

    def __post_init__(self):
        """Check the values, since they come from flags and files."""
        if self.sweep_seed in self.seeds:
            raise InputError(
                f"sweep_seed {self.sweep_seed} is one of the seeds {self.seeds}; it must be another"
            )
        for name in ("seeds", "teacher_steps", "sweep_steps"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty; it must name at least one")
        if not 0 < self.num_neighbours < self.num_samples:
            raise InputError(
                f"num_neighbours is {self.num_neighbours}; it must be above 0 and below the number "
                f"of samples, {self.num_samples}"
            )


# The names of its fields: a config's section may hold more than the protocol's.
SETTINGS = tuple(field.name for field in fields(ProtocolSettings))


@dataclass(frozen=True)
class Evaluation:
    """The outcome.

    Attributes:
        rows: {"model", "steps", "metrics": {name: {"mean", "std"}}, "sampler"}: the teacher at each
            step count, the generator, the test split. std is over the seeds with ddof 1, and 0
            for a single one; steps is 0 for the test split.
        sweep: {"steps", "sampler", "frechet_features", "frechet_pixels", "chosen"} per candidate.
        pictures: (model, steps) -> images of the first seed, with the labels `picture_labels`; the
            keys are those of the rows.
        picture_labels: int [num_pictures].
        neighbours: the training image nearest to each of the generator's pictures, in pixels.
        per_class: {"model", "steps", "metrics": {name: [{"mean", "std"} or None per class]}} for
            each row, with the metrics of by_class.METRICS; None where a class has too few images.
        extremes: the generator's worst and best samples of the first seed.
        settings: what was run.
    """

    rows: list[dict]
    sweep: list[dict]
    pictures: dict[tuple[str, int], Images]
    picture_labels: Labels
    neighbours: Images
    per_class: list[dict]
    extremes: Extremes
    settings: ProtocolSettings


def candidates(
    guidances: Sequence[float | int],
    choice_temperatures: Sequence[float | int],
    random_order: bool,
) -> list[Sampler]:
    """Return the teacher's samplers to compare: every guidance with every order of unmasking.

    Args:
        guidances: scales s in u + s(c - u).
        choice_temperatures: of the Gumbel noise on the confidence, falling linearly with the steps.
        random_order: whether to try unmasking in random order too.

    Returns:
        Fields of samplers.maskgit.MaskGitSettings, one dict for each candidate.
    """
    orders = [{"randomize": "linear", "choice_temperature": float(t)} for t in choice_temperatures]
    if random_order:
        orders.append({"randomize": "random", "choice_temperature": 0.0})
    return [{"guidance": float(scale), **order} for scale in guidances for order in orders]


def evaluate(
    sample_teacher: Callable[[int, Sampler, int, Labels], Images],
    sample_generator: Callable[[int, Labels], Images],
    *,
    data: Data,
    network: FeatureNetwork,
    samplers: Sequence[Sampler],
    generator_sampler: Sampler,
    settings: ProtocolSettings,
    progress: Progress,
) -> Evaluation:
    """Sweep the teacher's samplers, then measure teacher, generator and test split.

    Args:
        sample_teacher: (num_steps, sampler, seed, labels [N]) -> float32 [N, H, W, C] in [0, 1].
        sample_generator: (seed, labels [N]) -> the same, in one step.
        data: what to compare with.
        network: features and predictions.
        samplers: the sweep's candidates for the teacher, see `candidates`.
        generator_sampler: the generator's settings, only to be reported.
        settings: sizes and seeds.
        progress: called before each piece of work and once at the end.

    Returns:
        Rows, sweep and pictures.
    """
    reference = Reference(data, network, settings.num_neighbours)
    labels = balanced_labels(settings.num_samples, data.num_classes)
    work = _Work(samplers, settings, progress)
    sweep = _sweep(sample_teacher, reference, samplers, settings, work)
    work.count_rows({steps: chosen_sampler(sweep, steps) for steps in settings.teacher_steps})
    rows, per_class, pictures = [], [], {}

    def add_rows(model: str, steps: int, sampler: Sampler, results: Sequence[Measured]) -> None:
        rows.append(_row(model, steps, sampler, [result.metrics for result in results]))
        per_class.append(_class_row(model, steps, [result.per_class for result in results]))

    def measure(
        model: str, steps: int, sampler: Sampler, sample: Callable[[int, Labels], Images]
    ) -> Images:
        """Add the rows of every seed; gives the first seed's images."""
        results, first = [], None
        for seed in settings.seeds:
            work.start(f"{model}, {metric_names.count_steps(steps)}, seed {seed}")
            images = np.asarray(sample(seed, labels), np.float32)
            first = images if first is None else first
            results.append(reference.measure(images, labels))
            work.finish(settings.num_samples * _calls(steps, sampler))
        add_rows(model, steps, sampler, results)
        pictures[model, steps] = first[: settings.num_pictures]
        return first

    for steps in settings.teacher_steps:
        best = chosen_sampler(sweep, steps)
        measure("teacher", steps, best, functools.partial(sample_teacher, steps, best))
    generated = measure("generator", 1, generator_sampler, sample_generator)
    add_rows("test_split", 0, {}, [reference.measure(data.test_images, data.test_labels)])
    work.start("done")

    picture_labels = labels[: settings.num_pictures]
    pictures["test_split", 0] = images_with_labels(
        data.test_images, data.test_labels, picture_labels
    )
    index, _ = frechet.nearest(pictures["generator", 1], data.train_images)
    neighbours = data.train_images[index]
    extremes = reference.extremes(generated, labels)
    return Evaluation(
        rows, sweep, pictures, picture_labels, neighbours, per_class, extremes, settings
    )


def balanced_labels(num_samples: int, num_classes: int) -> Labels:
    """int32 [num_samples]: 0, 1, ..., num_classes - 1, 0, 1, ...: as many of each as can be."""
    return np.arange(num_samples, dtype=np.int32) % num_classes


def chosen_sampler(sweep: Sequence[Mapping], steps: int) -> Sampler:
    """Return the sampler that the sweep chose at the swept step count nearest to `steps`."""
    chosen = [row for row in sweep if row["chosen"]]
    # Of two equally near ones the larger.
    chosen.sort(key=lambda row: (max(row["steps"] / steps, steps / row["steps"]), -row["steps"]))
    return chosen[0]["sampler"]


def images_with_labels(
    images: Float[np.ndarray, "N H W C"],
    image_labels: Int[np.ndarray, "N"],
    labels: Int[np.ndarray, "M"],
) -> Float[np.ndarray, "M H W C"]:
    """For each label the next image of that class, in their own order; cycles if there are few."""
    of_class = {label: np.flatnonzero(image_labels == label) for label in set(labels.tolist())}
    seen = dict.fromkeys(of_class, 0)
    index = []
    for label in labels.tolist():
        index.append(of_class[label][seen[label] % len(of_class[label])])
        seen[label] += 1
    return images[index]


class _Work:
    """Counts images times network calls, known beforehand, so that an ETA can be linear in it."""

    def __init__(self, samplers: Sequence[Sampler], settings: ProtocolSettings, report: Progress):
        in_sweep = sum(_calls(n, s) for n in settings.sweep_steps for s in _distinct(samplers, n))
        self.in_sweep = settings.sweep_num_samples * in_sweep
        self.settings, self.report = settings, report
        self.done = 0
        # Which of the samplers the sweep will choose is not known yet: the dearest.
        dearest = max(samplers, key=lambda sampler: _calls(1, sampler))
        self.count_rows(dict.fromkeys(settings.teacher_steps, dearest))

    def count_rows(self, chosen: Mapping[int, Sampler]) -> None:
        """Count the teacher's rows anew, now that their samplers are known."""
        calls = sum(_calls(steps, sampler) for steps, sampler in chosen.items()) + 1
        in_rows = self.settings.num_samples * len(self.settings.seeds) * calls
        self.total = self.in_sweep + in_rows

    def start(self, text: str) -> None:
        self.report(min(self.done, self.total), self.total, text)

    def finish(self, amount: int) -> None:
        self.done += amount


def _sweep(
    sample_teacher: Callable[[int, Sampler, int, Labels], Images],
    reference: Reference,
    samplers: Sequence[Sampler],
    settings: ProtocolSettings,
    work: _Work,
) -> list[dict]:
    """Measure every candidate at every swept step count.

    The least sum of the two distances is chosen.
    """
    labels = balanced_labels(settings.sweep_num_samples, reference.data.num_classes)
    rows = []
    for steps in settings.sweep_steps:
        here = []
        for sampler in _distinct(samplers, steps):
            work.start(
                f"sweep, {metric_names.count_steps(steps)}, {metric_names.describe(sampler)}"
            )
            images = np.asarray(sample_teacher(steps, sampler, settings.sweep_seed, labels))
            here.append({"steps": steps, "sampler": sampler, **reference.distances(images)})
            work.finish(settings.sweep_num_samples * _calls(steps, sampler))
        best = min(here, key=lambda row: row["frechet_features"] + row["frechet_pixels"])
        rows += [{**row, "chosen": row is best} for row in here]
    return rows


def _distinct(samplers: Sequence[Sampler], steps: int) -> list[Sampler]:
    """Return the candidates that differ at this step count.

    In one step there is no order to choose.
    """
    if steps > 1:
        return list(samplers)
    return list({sampler["guidance"]: sampler for sampler in reversed(samplers)}.values())[::-1]


def _calls(steps: int, sampler: Mapping) -> int:
    """Network calls of a sampler; guidance needs two in each step, unless it is 1."""
    return max(steps, 1) * (1 if sampler.get("guidance", 1.0) == 1.0 else 2)


def _row(model: str, steps: int, sampler: Mapping, results: Sequence[Mapping]) -> dict:
    metrics = {}
    for name in METRICS:
        values = np.array([result[name] for result in results])
        std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        metrics[name] = {"mean": float(values.mean()), "std": std}
    return {"model": model, "steps": steps, "metrics": metrics, "sampler": dict(sampler)}


def _class_row(model: str, steps: int, results: Sequence[Mapping]) -> dict:
    metrics = {
        name: [
            by_class.over_seeds(values)
            for values in zip(*(result[name] for result in results), strict=True)
        ]
        for name in by_class.METRICS
    }
    return {"model": model, "steps": steps, "metrics": metrics}
