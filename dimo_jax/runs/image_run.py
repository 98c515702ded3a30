"""Images by way of a tokenizer: teacher, one-step generator and, where there are data, a report."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from dimo_jax import bundles, samplers, tokenizers
from dimo_jax import config as configs
from dimo_jax.common import trees, versions
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress
from dimo_jax.conditions.labels import LabelConditions
from dimo_jax.conditions.prompts import PromptIds
from dimo_jax.conditions.text import TEXT_ENCODER_FOLDER
from dimo_jax.config import mixture
from dimo_jax.data.built_in import Pictures
from dimo_jax.data.examples import Examples
from dimo_jax.evaluation import evaluate_models
from dimo_jax.evaluation.features import classifier
from dimo_jax.evaluation.real_images import RealImages
from dimo_jax.evaluation.report import digits_report, page, result_folders
from dimo_jax.models import joined
from dimo_jax.parallel import distributed
from dimo_jax.runs import checks, codebook, model_card, pictures, train_fid
from dimo_jax.runs.image_setup import ImageRun, Images, load
from dimo_jax.runs.training_sets import Splits, TrainingSet
from dimo_jax.training import load_conditions, load_models, programs, settings, stages, traces
from dimo_jax.training.metrics import Metrics

__all__ = ["ImageRun", "load", "run"]

# (parameters, numbers of conditions, index of the first image) -> images
Drawing = Callable[[Any, Int[np.ndarray, "N"], int], Images]


def run(
    loaded: ImageRun,
    metrics: Metrics,
    began: float,
    trace: traces.Request | None = None,
    teacher_only: bool = False,
) -> str:
    """Make teacher, generator and report; each part is skipped where its result is there already.

    Args:
        loaded: of `load`.
        metrics: of the run.
        began: time.monotonic() of the command's start.
        trace: of some steps of the distillation.
        teacher_only: end with the teacher.

    Returns:
        What was done and where it is.
    """
    config, workdir, network = loaded.config, loaded.workdir, loaded.network
    loaded = dataclasses.replace(loaded, tokenizer_params=_tokenizer_params(loaded))
    real = None
    if loaded.pictures is not None and loaded.reports:
        real = loaded.pictures.splits(loaded.tokenizer, loaded.tokenizer_params)
    if shares := _shares(loaded):
        conditions = LabelConditions(network.num_classes, shares)
        loaded = dataclasses.replace(loaded, conditions=conditions)
    loaded.conditions.fill_cache()
    # Its network may have to be trained first: not for a generator that is not made.
    measured = config["interim"]["teacher"] or not teacher_only
    distance = _distance(loaded, real) if measured else None
    teacher, loaded = _teacher(loaded, distance, metrics)
    if teacher_only:
        return f"done, the teacher is {workdir / 'teacher'}"
    generator = stages.run_distill(
        config,
        loaded.generator_network,
        load_models.start_of(loaded.generator_network, teacher, config["seed"]),
        network,
        teacher,
        loaded.conditions,
        layout=loaded.layout,
        directory=stages.checkpoints_of(workdir, "distill"),
        metrics=metrics,
        pictures=pictures.of_generator(loaded, teacher),
        measure=distance and _measure(loaded, distance, _generator_drawing(loaded)),
        generator=loaded.start and loaded.start.params,
        trace=trace,
        examples=_examples(loaded),
    )
    made = load_models.provenance(
        config, config["distill"]["num_steps"], loaded.start, loaded.teacher
    )
    _save(loaded, "export", "generator", generator, settings.sampler_of(config), made)
    if not distributed.is_lead():
        # What is left is one process's work: the command waits for it at its end.
        return "done"
    if real is None:
        return f"done, the generator is {workdir / 'export'}"

    hashes = {
        "teacher": trees.fingerprint(teacher),
        "generator": trees.fingerprint(generator),
        "tokenizer": tokenizers.fingerprint(loaded.tokenizer, loaded.tokenizer_params),
        "settings": configs.settings_hash(configs.stage_settings(config, "evaluation")),
    }
    page_file = workdir / "report" / page.FILE_NAME
    # The page is written last.
    if page_file.exists() and result_folders.hashes_of(page_file.parent).items() >= hashes.items():
        model_card.write(workdir)
        return f"done already, see {page_file}; nothing was left to do"
    _evaluate(loaded, real, teacher, generator, hashes, began)
    model_card.write(workdir)
    return f"done, see {page_file} or report.md beside it: teacher, generator and report"


def _examples(loaded: ImageRun) -> Examples | None:
    """Return what the distillation learns from; None of a method that needs no images."""
    if not mixture.is_chosen(loaded.config) or loaded.pictures is None:
        return None
    return loaded.pictures.examples(loaded.tokenizer, loaded.tokenizer_params)


def _shares(loaded: ImageRun) -> tuple[int, ...]:
    """Return how many training pictures each class has; none where classes are drawn evenly."""
    data = loaded.config["data"]
    if loaded.pictures is None or data["balanced"] or loaded.encoder is not None:
        return ()
    return loaded.pictures.counts(data["num_classes"])


def _tokenizer_params(loaded: ImageRun) -> Any:
    """Return the tokenizer's parameters; fitted ones are kept in the work directory."""
    tokenizer, params = loaded.tokenizer, loaded.tokenizer_params
    if params is None:  # those of a network are random, see config.teacher
        return jax.device_get(jax.jit(tokenizer.init)(jax.random.key(loaded.config["seed"])))
    if loaded.fits_tokenizer:
        place = loaded.workdir / codebook.FOLDER
        return distributed.lead_first(lambda: codebook.keep(place, tokenizer, params))
    return params


def _teacher(
    loaded: ImageRun, distance: train_fid.Distance | None, metrics: Metrics
) -> tuple[Any, ImageRun]:
    """Return the teacher's parameters, from its bundle, random, or trained here, and the run.

    With the text encoder that was trained with it, if there is one.
    """
    config, network = loaded.config, loaded.network
    if loaded.teacher is not None:
        return loaded.teacher.params, loaded
    if config["teacher"]["random"]:
        teacher = jax.jit(network.init)(jax.random.key(config["seed"]))
    elif loaded.pictures is None:
        raise InputError("there are no data to train a teacher on; give config.teacher.bundle")
    else:
        measured = distance if config["interim"]["teacher"] else None
        teacher, loaded = _trained(loaded, loaded.pictures, measured, metrics)
    about = {"title": config["title"], "seed": config["seed"]}
    _save(loaded, "teacher", "teacher", teacher, loaded.teacher_sampler or None, about)
    return teacher, loaded


def _trained(
    loaded: ImageRun, data: TrainingSet, measured: train_fid.Distance | None, metrics: Metrics
) -> tuple[Any, ImageRun]:
    """Train the teacher on the pictures, with text its encoder too; return as `_teacher`."""
    config, prompts, encoder = loaded.config, loaded.conditions, loaded.encoder
    conditions, drawn = LabelConditions(loaded.network.num_classes), loaded
    if encoder is not None:
        conditions = PromptIds(data.texts, encoder.tokenizer, config["prompts"]["negative"])
        both = programs.pretrained_network(config, loaded.network)
        drawn = dataclasses.replace(loaded, network=both)
    draw = _teacher_drawing(drawn, conditions)
    found = stages.run_pretrain(
        config,
        loaded.network,
        data.examples(loaded.tokenizer, loaded.tokenizer_params, of_texts=encoder is not None),
        conditions,
        layout=loaded.layout,
        directory=stages.checkpoints_of(loaded.workdir, "pretrain"),
        metrics=metrics,
        pictures=pictures.of_teacher(drawn, conditions),
        measure=measured and _measure(loaded, measured, draw),
    )
    if encoder is None or isinstance(prompts, LabelConditions):
        return found, loaded
    encoder = dataclasses.replace(encoder, params=found[joined.TEXT_ENCODER])
    prompts = prompts.encoded_by(load_conditions.text_conditions(config, loaded.network, encoder))
    loaded = dataclasses.replace(loaded, encoder=encoder, conditions=prompts)
    return found[joined.TRANSFORMER], loaded


def _save(
    loaded: ImageRun, name: str, kind: str, params: Any, sampler: Any, about: Mapping[str, Any]
) -> None:
    """Write a bundle of the run, its tokenizer and text encoder in it; on the lead alone."""
    if not distributed.is_lead():
        return
    tokenizer, tokenizer_params = loaded.tokenizer, loaded.tokenizer_params
    digest = tokenizers.fingerprint(tokenizer, tokenizer_params)
    bundles.save(
        loaded.workdir / name,
        kind=kind,
        model=(loaded.network if kind == "teacher" else loaded.generator_network).config,
        params=params,
        sampler=sampler,
        tokenizer={"config": tokenizer.config, "hash": digest},
        tokenizer_params=tokenizer_params,
        provenance={**about, **load_conditions.remembered(loaded.config, loaded.encoder)},
        inside=loaded.encoder and {TEXT_ENCODER_FOLDER: loaded.encoder.content()},
    )


def _classifier(loaded: ImageRun, train: Pictures) -> classifier.FeatureNetwork:
    """Return the network of the data's own distances, trained once and kept."""
    return classifier.load_or_fit(
        loaded.workdir / "classifier",
        train.images,
        train.labels,
        loaded.config["data"]["num_classes"],
        checks.classifier_settings(loaded.config),
    )


def _distance(loaded: ImageRun, real: Splits | None) -> train_fid.Distance | None:
    """Return what config.interim wants measured, which may have to be trained first."""
    if loaded.distance != "own":
        return loaded.distance
    if real is None:
        raise InputError("config.interim has no data to train its feature network on")
    network = distributed.lead_first(lambda: _classifier(loaded, real.train))
    return train_fid.classifier_distance(network, real.train.images)


def _generator_drawing(loaded: ImageRun) -> Drawing:
    """Return how images are drawn of a generator."""

    def draw(params: Any, some: Int[np.ndarray, "N"], start: int) -> Images:
        condition, seed = loaded.conditions.features(some), loaded.config["interim"]["seed"]
        return loaded.draw(params, loaded.sampler, seed, condition, first_index=start)

    return draw


def _teacher_drawing(loaded: ImageRun, conditions: programs.DataConditions) -> Drawing:
    """Return how images are drawn of a teacher, in as many steps as for its pictures."""
    steps = loaded.config["logging"]["picture_steps"]

    def draw(params: Any, some: Int[np.ndarray, "N"], start: int) -> Images:
        condition, null = conditions.features(some), conditions.null(len(some))
        seed = loaded.config["interim"]["seed"]
        return loaded.draw_teacher(params, steps, {}, seed, condition, null, start)

    return draw


def _measure(loaded: ImageRun, distance: train_fid.Distance, draw: Drawing) -> stages.Measure:
    """Return what is measured of a network in its training."""
    section, size = loaded.config["interim"], loaded.config["evaluation"]["batch_size"]
    numbers = load_conditions.in_turn(loaded.conditions, section["num_samples"])
    return lambda params: train_fid.evaluate(
        functools.partial(draw, params), distance, numbers, size
    )


def _evaluated_on(
    loaded: ImageRun, test: Pictures
) -> tuple[Callable[[np.ndarray], Any], tuple[str, ...]]:
    """Return what gives the conditions of numbers of classes, or of texts that are given too.

    These are of pictures that nothing was trained on.
    """
    conditions = loaded.conditions
    if isinstance(conditions, LabelConditions):
        return conditions.features, ()
    found = conditions.of_texts(test.texts)
    return lambda numbers: jax.tree.map(lambda x: x[numbers], found), test.texts


def _evaluate(
    loaded: ImageRun,
    real: Splits,
    teacher: Any,
    generator: Any,
    hashes: Mapping[str, str],
    began: float,
) -> None:
    """Measure teacher and generator and write the report."""
    config, section = loaded.config, loaded.config["evaluation"]

    features, texts = _evaluated_on(loaded, real.test)

    def draw_teacher(steps: int, sampler: Mapping, seed: int, numbers: np.ndarray) -> Images:
        null = loaded.conditions.null(len(numbers))
        return loaded.draw_teacher(teacher, steps, sampler, seed, features(numbers), null)

    def draw_generator(sampler: Any, seed: int, numbers: np.ndarray) -> Images:
        return loaded.draw(generator, sampler, seed, features(numbers))

    generators = [
        (entry, samplers.of_generator(loaded.generator_network, entry))
        for entry in settings.samplers_of(config)
    ]
    with Progress("evaluate") as progress:
        progress.note("fits the feature classifier")
        network = _classifier(loaded, real.train)
        result = evaluate_models.evaluate(
            draw_teacher,
            [
                evaluate_models.Generator(
                    chosen.num_steps, entry, functools.partial(draw_generator, chosen)
                )
                for entry, chosen in generators
            ],
            data=RealImages(
                real.train.images,
                real.train.labels,
                real.test.images,
                real.test.labels,
                config["data"]["num_classes"],
                functools.partial(loaded.tokenizer.encode, loaded.tokenizer_params),
                loaded.tokenizer.codebook_size,
                _shares(loaded),
                texts,
            ),
            network=network,
            samplers=evaluate_models.candidates(
                section["guidances"], section["choice_temperatures"], section["random_order"]
            ),
            settings=checks.evaluation_settings(config, loaded.network),
            progress=progress.update,
        )
    folder, source = loaded.workdir / "report", loaded.pictures.source if loaded.pictures else ""
    digits_report.write(
        folder,
        result,
        title=config["title"],
        class_names=loaded.pictures.class_names if loaded.pictures else (),
        provenance={
            "seed": config["seed"],
            **versions.environment(),
            "wall_seconds": round(time.monotonic() - began, 1),
            "hashes": {**hashes, "classifier": network.params_hash},
            **({"real_images": source} if source else {}),
        },
    )
    page.write(folder, title=config["title"], workdir=loaded.workdir)
