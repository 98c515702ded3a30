"""Images by way of a tokenizer: teacher, one-step generator and, where there are data, a report."""

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from dimo_jax import bundles, tokenizers
from dimo_jax import config as configs
from dimo_jax.common import trees, versions
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress
from dimo_jax.conditions.labels import LabelConditions
from dimo_jax.conditions.text import TEXT_ENCODER_FOLDER
from dimo_jax.data.built_in import Pictures
from dimo_jax.data.examples import in_memory
from dimo_jax.evaluation import evaluate_models
from dimo_jax.evaluation.features import classifier
from dimo_jax.evaluation.report import digits_report, page, result_folders
from dimo_jax.parallel import distributed
from dimo_jax.runs import checks, codebook, pictures, train_fid
from dimo_jax.runs.image_setup import ImageRun, Images, load
from dimo_jax.training import load_conditions, load_models, settings, stages, traces
from dimo_jax.training.metrics import Metrics

__all__ = ["ImageRun", "load", "run"]


def run(
    loaded: ImageRun, metrics: Metrics, began: float, trace: traces.Request | None = None
) -> str:
    """Make teacher, generator and report; each part is skipped where its result is there already.

    Args:
        loaded: of `load`.
        metrics: of the run.
        began: time.monotonic() of the command's start.
        trace: of some steps of the distillation.

    Returns:
        What was done and where it is.
    """
    config, workdir, network = loaded.config, loaded.workdir, loaded.network
    train, test = _data(loaded)
    loaded = dataclasses.replace(loaded, tokenizer_params=_tokenizer_params(loaded))
    if shares := _shares(loaded, train):
        conditions = LabelConditions(network.num_classes, shares)
        loaded = dataclasses.replace(loaded, conditions=conditions)
    loaded.conditions.fill_cache()

    teacher = _teacher(loaded, train, metrics)
    generator = stages.run_distill(
        config,
        network,
        teacher,
        network,
        teacher,
        loaded.conditions,
        layout=loaded.layout,
        directory=stages.checkpoints_of(workdir, "distill"),
        metrics=metrics,
        pictures=pictures.of_generator(loaded, teacher),
        measure=_measure(loaded, train),
        generator=loaded.start and loaded.start.params,
        trace=trace,
    )
    made = load_models.provenance(config, config["distill"]["num_steps"], loaded.start)
    sampler = settings.sampler_of(config)
    _save(loaded, "export", "generator", generator, sampler, made)
    if not distributed.is_lead():
        # What is left is one process's work: the command waits for it at its end.
        return "done"
    if train is None or test is None:
        return f"done, the generator is {workdir / 'export'}"

    hashes = {
        "teacher": trees.fingerprint(teacher),
        "generator": trees.fingerprint(generator),
        "tokenizer": tokenizers.fingerprint(loaded.tokenizer, loaded.tokenizer_params),
        "settings": configs.settings_hash(configs.stage_settings(config, "evaluation")),
    }
    folder = workdir / "report"
    page_file = folder / page.FILE_NAME
    # The page is written last.
    if page_file.exists() and result_folders.hashes_of(folder).items() >= hashes.items():
        return f"done already, see {page_file}; nothing was left to do"
    _evaluate(loaded, train, test, teacher, generator, hashes, began)
    return f"done, see {page_file} or report.md beside it: teacher, generator and report"


def _data(loaded: ImageRun) -> list[Pictures] | tuple[None, None]:
    """Return the training and the test split, where there are data."""
    found = loaded.pictures
    if found is None:
        return None, None
    where = loaded.config["data"]["directory"] or loaded.workdir / "data"
    return distributed.lead_first(lambda: [found.load(split, where) for split in ("train", "test")])


def _shares(loaded: ImageRun, train: Pictures | None) -> tuple[int, ...]:
    """Return how many training pictures each class has; none where classes are drawn evenly."""
    if train is None or loaded.config["data"]["balanced"]:
        return ()
    return tuple(np.bincount(train.labels, minlength=loaded.network.num_classes).tolist())


def _tokenizer_params(loaded: ImageRun) -> Any:
    """Return the tokenizer's parameters; fitted ones are kept in the work directory."""
    tokenizer, params = loaded.tokenizer, loaded.tokenizer_params
    if params is None:  # those of a network are random, see config.teacher
        return jax.device_get(jax.jit(tokenizer.init)(jax.random.key(loaded.config["seed"])))
    if loaded.fits_tokenizer:
        place = loaded.workdir / codebook.FOLDER
        return distributed.lead_first(lambda: codebook.keep(place, tokenizer, params))
    return params


def _teacher(loaded: ImageRun, train: Pictures | None, metrics: Metrics) -> Any:
    """Return the teacher's parameters: from its bundle, random, or trained here."""
    config, network = loaded.config, loaded.network
    if loaded.teacher is not None:
        return loaded.teacher.params
    if config["teacher"]["random"]:
        teacher = jax.jit(network.init)(jax.random.key(config["seed"]))
    elif train is None:
        raise InputError("there are no data to train a teacher on; give config.teacher.bundle")
    else:
        encoded = loaded.tokenizer.encode(loaded.tokenizer_params, train.images)
        teacher = stages.run_pretrain(
            config,
            network,
            in_memory(np.asarray(encoded, np.int32), np.asarray(train.labels, np.int32)),
            layout=loaded.layout,
            directory=stages.checkpoints_of(loaded.workdir, "pretrain"),
            metrics=metrics,
            pictures=pictures.of_teacher(loaded),
        )
    about = {"title": config["title"], "seed": config["seed"]}
    _save(loaded, "teacher", "teacher", teacher, None, about)
    return teacher


def _save(
    loaded: ImageRun, name: str, kind: str, params: Any, sampler: Any, about: Mapping[str, Any]
) -> None:
    """Write a bundle of the run, its tokenizer and text encoder in it; on the lead alone."""
    if not distributed.is_lead():
        return
    inside = None
    if loaded.encoder is not None:
        about = {**about, TEXT_ENCODER_FOLDER: loaded.encoder.identity}
        inside = {TEXT_ENCODER_FOLDER: loaded.encoder.content()}
    tokenizer, tokenizer_params = loaded.tokenizer, loaded.tokenizer_params
    digest = tokenizers.fingerprint(tokenizer, tokenizer_params)
    bundles.save(
        loaded.workdir / name,
        kind=kind,
        model=loaded.network.config,
        params=params,
        sampler=sampler,
        tokenizer={"config": tokenizer.config, "hash": digest},
        tokenizer_params=tokenizer_params,
        provenance=about,
        inside=inside,
    )


def _classifier(loaded: ImageRun, train: Pictures) -> classifier.FeatureNetwork:
    """Return the network of the data's own distances, trained once and kept."""
    return classifier.load_or_fit(
        loaded.workdir / "classifier",
        train.images,
        train.labels,
        loaded.network.num_classes,
        checks.classifier_settings(loaded.config),
    )


def _measure(loaded: ImageRun, train: Pictures | None) -> stages.Measure | None:
    """Return what config.interim wants measured of the generator in training."""
    section, size = loaded.config["interim"], loaded.config["evaluation"]["batch_size"]
    distance = loaded.distance
    if distance is None:
        return None
    if distance == "own":
        if train is None:
            raise InputError("config.interim has no data to train its feature network on")
        network = distributed.lead_first(lambda: _classifier(loaded, train))
        distance = train_fid.classifier_distance(network, train.images)

    def draw(params: Any, some: Int[np.ndarray, "N"], start: int) -> Images:
        condition = loaded.conditions.features(some)
        return loaded.draw(params, loaded.sampler, section["seed"], condition, first_index=start)

    numbers = load_conditions.in_turn(loaded.conditions, section["num_samples"])
    return lambda params: train_fid.evaluate(
        functools.partial(draw, params), distance, numbers, size
    )


def _evaluate(
    loaded: ImageRun,
    train: Pictures,
    test: Pictures,
    teacher: Any,
    generator: Any,
    hashes: Mapping[str, str],
    began: float,
) -> None:
    """Measure teacher and generator and write the report."""
    config, section = loaded.config, loaded.config["evaluation"]

    def draw_teacher(steps: int, sampler: Mapping, seed: int, labels: np.ndarray) -> Images:
        null = loaded.conditions.null(len(labels))
        return loaded.draw_teacher(teacher, steps, sampler, seed, labels, null)

    with Progress("evaluate") as progress:
        progress.note("fits the feature classifier")
        network = _classifier(loaded, train)
        result = evaluate_models.evaluate(
            draw_teacher,
            lambda *args: loaded.draw(generator, loaded.sampler, *args),
            data=evaluate_models.Data(
                train.images,
                train.labels,
                test.images,
                test.labels,
                loaded.network.num_classes,
                functools.partial(loaded.tokenizer.encode, loaded.tokenizer_params),
                loaded.tokenizer.codebook_size,
                _shares(loaded, train),
            ),
            network=network,
            samplers=evaluate_models.candidates(
                section["guidances"], section["choice_temperatures"], section["random_order"]
            ),
            generator_sampler=settings.sampler_of(config),
            settings=checks.evaluation_settings(config, loaded.network),
            progress=progress.update,
        )
    folder = loaded.workdir / "report"
    digits_report.write(
        folder,
        result,
        title=config["title"],
        class_names=loaded.pictures.CLASS_NAMES if loaded.pictures else (),
        provenance={
            "seed": config["seed"],
            **versions.environment(),
            "wall_seconds": round(time.monotonic() - began, 1),
            "hashes": {**hashes, "classifier": network.params_hash},
        },
    )
    page.write(folder, title=config["title"], workdir=loaded.workdir)
