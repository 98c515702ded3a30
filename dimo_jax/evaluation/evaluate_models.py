"""A teacher and its generator against their data: the teacher's sweep, then every model and seed.

Samples come from functions, so nothing here knows networks or samplers; the result is a function of
the seeds in the settings. Each distance is between the samples and the training split, in percent
of that split's total variance.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from dimo_jax.common.errors import InputError
from dimo_jax.common.images import to_uint8
from dimo_jax.evaluation import evaluate_images
from dimo_jax.evaluation.features.classifier import FeatureNetwork
from dimo_jax.evaluation.features.outputs import InMemory
from dimo_jax.evaluation.metrics import by_class, neighbours, of_outputs
from dimo_jax.evaluation.metrics import names as metric_names
from dimo_jax.evaluation.metrics.rows import Row, over_seeds
from dimo_jax.evaluation.real_images import Images, Labels, RealImages
from dimo_jax.evaluation.shown import Shown, Tile, ends

Sampler = Mapping[str, Any]
# (work done, work in all, what is being done); work is in images times network calls.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ProtocolSettings:
    """What is run.

    Attributes:
        num_samples: images in each measurement; labels go in rounds, see labels.in_turn.
        seeds: sampling seeds; mean and spread are over them.
        teacher_steps: step counts at which the teacher is measured.
        sweep_steps: step counts at which its samplers are compared; any other step count takes the
            choice of the nearest of these, by ratio, of two the larger.
        sweep_num_samples: images for each candidate.
        sweep_seed: sampling seed of the sweep; none of `seeds`, or the choice would be measured on
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
        rows: the teacher at each step count, the generator, the test split, over all seeds.
        sweep: (row, whether it was chosen) of each candidate.
        shown: of each row the first seed's first images, real images first; of the generator the
            training images nearest to them, in pixels, and its worst and best samples too.
        settings: what was run.
        balanced: whether there are as many samples of each class as can be.
    """

    rows: list[Row]
    sweep: list[tuple[Row, bool]]
    shown: list[Shown]
    settings: ProtocolSettings
    balanced: bool = True


class Generator(NamedTuple):
    """A generator at one number of steps.

    Attributes:
        steps: network calls, without those of a guidance.
        sampler: its settings, to be reported.
        sample: (seed, numbers [N] of RealImages.in_turn) -> float32 [N, H, W, C] in [0, 1].
    """

    steps: int
    sampler: Sampler
    sample: Callable[[int, Labels], Images]


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
    generators: Sequence[Generator],
    *,
    data: RealImages,
    network: FeatureNetwork,
    samplers: Sequence[Sampler],
    settings: ProtocolSettings,
    progress: Progress,
) -> Evaluation:
    """Sweep the teacher's samplers, then measure teacher, generator and test split.

    Args:
        sample_teacher: (num_steps, sampler, seed, numbers [N] of RealImages.in_turn) -> float32
            [N, H, W, C] in [0, 1].
        generators: the generator at each of its numbers of steps; the first is the one whose
            nearest images, worst and best samples are shown.
        data: what to compare with.
        network: features and predictions.
        samplers: the sweep's candidates for the teacher, see `candidates`.
        settings: sizes and seeds.
        progress: called before each piece of work and once at the end.

    Returns:
        Rows, sweep and pictures.
    """
    outputs = functools.partial(data.outputs, network)
    real = outputs(data.train_images, data.train_labels)
    metrics = of_outputs.of_classifier(
        data.num_classes, data.codebook_size, settings.num_neighbours
    )
    numbers = data.in_turn(settings.num_samples)
    classes = data.classes(numbers)
    work = _Work(samplers, generators, settings, progress)
    sweep = _sweep(sample_teacher, outputs, real, data, samplers, settings, work)
    work.count_rows({steps: chosen_sampler(sweep, steps) for steps in settings.teacher_steps})
    rows, shown = [], []

    def measure(
        model: str, steps: int, sampler: Sampler, sample: Callable[[int, Labels], Images]
    ) -> InMemory:
        """Add the row of all seeds; give the first seed's outputs."""
        of_seeds: list[Row] = []
        first: list[InMemory] = []
        about = {"model": model, "steps": steps, "sampler": sampler}
        for seed in settings.seeds:
            work.start(f"{metric_names.title(model, steps)}, seed {seed}")
            samples = outputs(np.asarray(sample(seed, numbers), np.float32), classes)
            first = first or [samples]
            of_seeds.append(evaluate_images.evaluate(samples, real, metrics, **about))
            work.finish(settings.num_samples * _calls(steps, sampler))
        rows.append(over_seeds(of_seeds))
        shown.append(show(model, steps, first[0].images))
        return first[0]

    def show(model: str, steps: int, images: Images) -> Shown:
        first = to_uint8(images[: settings.num_pictures])
        texts = data.texts_of(numbers[: len(first)])
        labels = classes[: len(first)]
        return Shown(model, steps, settings.seeds[0], labels, first, texts=texts)

    for steps in settings.teacher_steps:
        best = chosen_sampler(sweep, steps)
        measure("teacher", steps, best, functools.partial(sample_teacher, steps, best))
    of_generators = [measure("generator", *one) for one in generators]
    test = outputs(data.test_images, data.test_labels)
    rows.append(over_seeds([evaluate_images.evaluate(test, real, metrics, model="test_split")]))
    work.start("done")
    test_images = data.pictured(numbers[: settings.num_pictures])
    first_generator = len(shown) - len(generators)
    shown[first_generator] = _with_neighbours(shown[first_generator], of_generators[0], real)
    shown.insert(0, show("test_split", 0, test_images))
    return Evaluation(rows, sweep, shown, settings, not (data.shares or data.texts))


def _with_neighbours(shown: Shown, samples: InMemory, real: InMemory) -> Shown:
    """Add the training images nearest in pixels, and the worst and best samples of their class."""
    index, _ = neighbours.nearest(samples.images[: len(shown.first)], real.images)
    labels, predicted = samples.load("labels"), samples.load("predicted")
    nearest, distances = by_class.nearest_of_class(
        samples.load("features"), labels, real.load("features"), real.load("labels")
    )

    def tile(i: int) -> Tile:
        pair = (to_uint8(samples.images[i]), to_uint8(real.images[nearest[i]]))
        return Tile(*pair, float(distances[i]), int(labels[i]), int(predicted[i]))

    worst, best = ends(distances, tile)
    return shown._replace(neighbours=to_uint8(real.images[index]), worst=worst, best=best)


def chosen_sampler(sweep: Sequence[tuple[Row, bool]], steps: int) -> Sampler:
    """Return the sampler that the sweep chose at the swept step count nearest to `steps`."""
    chosen = [row for row, is_chosen in sweep if is_chosen]
    # Of two equally near ones the larger.
    best = min(chosen, key=lambda row: (max(row.steps / steps, steps / row.steps), -row.steps))
    return best.sampler


class _Work:
    """Counts images times network calls, known beforehand, so that an ETA can be linear in it."""

    def __init__(
        self,
        samplers: Sequence[Sampler],
        generators: Sequence[Generator],
        settings: ProtocolSettings,
        report: Progress,
    ):
        in_sweep = sum(_calls(n, s) for n in settings.sweep_steps for s in _distinct(samplers, n))
        self.in_sweep = settings.sweep_num_samples * in_sweep
        self.settings, self.report = settings, report
        self.of_generators = sum(_calls(one.steps, one.sampler) for one in generators)
        self.done = 0
        # Which of the samplers the sweep will choose is not known yet: the dearest.
        dearest = max(samplers, key=lambda sampler: _calls(1, sampler))
        self.count_rows(dict.fromkeys(settings.teacher_steps, dearest))

    def count_rows(self, chosen: Mapping[int, Sampler]) -> None:
        """Count the teacher's rows anew, now that their samplers are known."""
        calls = sum(_calls(steps, sampler) for steps, sampler in chosen.items())
        calls += self.of_generators
        in_rows = self.settings.num_samples * len(self.settings.seeds) * calls
        self.total = self.in_sweep + in_rows

    def start(self, text: str) -> None:
        self.report(min(self.done, self.total), self.total, text)

    def finish(self, amount: int) -> None:
        self.done += amount


def _sweep(
    sample_teacher: Callable[[int, Sampler, int, Labels], Images],
    outputs: Callable[[Images, Labels], InMemory],
    real: InMemory,
    data: RealImages,
    samplers: Sequence[Sampler],
    settings: ProtocolSettings,
    work: _Work,
) -> list[tuple[Row, bool]]:
    """Measure every candidate at every swept step count.

    The least sum of the two distances is chosen.
    """
    measure = functools.partial(evaluate_images.evaluate, metrics=of_outputs.FRECHET_PERCENTS)
    numbers, rows = data.in_turn(settings.sweep_num_samples), []
    for steps in settings.sweep_steps:
        here = []
        for sampler in _distinct(samplers, steps):
            work.start(
                f"sweep, {metric_names.count_steps(steps)}, {metric_names.describe(sampler)}"
            )
            images = np.asarray(sample_teacher(steps, sampler, settings.sweep_seed, numbers))
            about = {"model": "teacher", "steps": steps, "sampler": sampler}
            here.append(measure(outputs(images, data.classes(numbers)), real, **about))
            work.finish(settings.sweep_num_samples * _calls(steps, sampler))
        best = min(
            here, key=lambda row: row.known("frechet_features") + row.known("frechet_pixels")
        )
        rows += [(row, row is best) for row in here]
    return rows


def _distinct(samplers: Sequence[Sampler], steps: int) -> list[Sampler]:
    """Return the candidates that differ at this step count.

    In one step there is no order to choose.
    """
    if steps > 1:
        return list(samplers)
    return list({sampler["guidance"]: sampler for sampler in reversed(samplers)}.values())[::-1]


def _calls(steps: int, sampler: Mapping) -> int:
    """Count a sampler's network calls; guidance needs two in each step, unless it is 1."""
    return max(steps, 1) * (1 if sampler.get("guidance", 1.0) == 1.0 else 2)
