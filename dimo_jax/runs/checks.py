"""What a run finds out about its config before it computes or writes anything."""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import jax

from dimo_jax import config as configs
from dimo_jax import models
from dimo_jax.common import files
from dimo_jax.common.errors import InputError, about
from dimo_jax.common.files import AnyPath
from dimo_jax.data.built_in import BuiltIn
from dimo_jax.evaluation import evaluate_models
from dimo_jax.evaluation.features import classifier
from dimo_jax.models import Network, attention
from dimo_jax.parallel.sharding import Layout
from dimo_jax.tokenizers import Tokenizer
from dimo_jax.training import programs, settings

Config = Mapping[str, Any]
_FOLDERS = ("compilation_cache", "data.directory", "prompts.cache")
_TOP_K = ("distill.top_k", "distill.teacher.top_k", "sampler.top_k")


def check_places(config: Config, workdir: AnyPath) -> None:
    """Refuse folders that are files, and places that cannot be written.

    Args:
        config: a complete config.
        workdir: the run's.

    Raises:
        InputError: the first of them.
        OSError: the disk is full.
    """
    files.check_writable(workdir / "config.json")
    fields = configs.flat(config)
    for path in _FOLDERS:
        if not fields[path]:
            continue
        with about(f"config.{path}"):
            place = files.path(os.path.expanduser(fields[path]))
            if place.exists() and not place.is_dir():
                raise InputError(f"config.{path}={place} is a file; name a folder")
            if path != "data.directory":
                files.check_writable(place / "new")


def check_pictures(
    config: Config, pictures: type[BuiltIn], tokenizer: Tokenizer, workdir: AnyPath
) -> None:
    """Refuse a tokenizer that does not take the pictures, and pictures that cannot be had.

    Args:
        config: a complete config.
        pictures: the set that its data.name names.
        tokenizer: the run's.
        workdir: the run's.

    Raises:
        InputError: with the fields that are wrong.
    """
    name = config["data"]["name"]
    if tokenizer.image_shape != pictures.IMAGE_SHAPE:
        raise InputError(
            f"config.tokenizer takes images of {tokenizer.image_shape}, and those of "
            f"config.data.name={name} are {pictures.IMAGE_SHAPE}; set config.tokenizer to match, "
            f"as in configs/{name}.py"
        )
    where = config["data"]["directory"] or workdir / "data"
    kept = not files.is_remote(where) and os.path.isdir(pictures.folder_of(where))
    if not kept and not files.is_remote(where):
        with about("config.data.directory"):
            files.check_writable(pictures.folder_of(where))
    # k-means is scikit-learn's too.
    fits = tokenizer.config["name"] == "patches" and not config["tokenizer"]["bundle"]
    needed = {} if kept else dict.fromkeys(pictures.NEEDS.items(), pictures.name)
    needed |= {("sklearn", "scikit-learn"): "digits"} if fits else {}
    for (module, package), extra in needed.items():
        if importlib.util.find_spec(module) is None:
            raise InputError(
                f"config.data.name={name} needs {package}, which is missing: run "
                f'pip install -e ".[{extra}]"'
            )


def check_draws(config: Config, codebook_size: int) -> None:
    """Refuse a top-k of more codes than there are."""
    fields = configs.flat(config)
    for path in _TOP_K:
        if fields[path] > codebook_size:
            raise InputError(
                f"config.{path} is {fields[path]}, more than the {codebook_size} codes of the "
                "tokenizer; lower it, or 0 for all"
            )


def check_attention(config: Config, network: Network) -> None:
    """Refuse a fused attention where it cannot run."""
    name = config["attention"]
    if name not in attention.NEEDS:
        return
    on = [
        f"config.{path}"
        for path, value in configs.flat(config).items()
        if path.endswith(".dropout") and value is True
    ]
    if attention.FUSED.get(attention.accelerator(None)) != name:
        raise InputError(
            f"config.attention={name} needs {attention.NEEDS[name]}, and the devices are of the "
            f"kind {jax.devices()[0].device_kind}; give --config.attention=auto"
        )
    if network.config.get("dropout") and on:
        raise InputError(
            f"config.attention={name} has no dropout, and {on[0]} is on; turn it off, or give "
            "--config.attention=auto"
        )


def stage_programs(
    config: Config,
    network: Network,
    teacher_network: Network,
    teacher_params: Any,
    layout: Layout,
    pretrains: bool,
) -> dict[str, programs.Program]:
    """Return the run's training steps: the mesh, the optimizers and the batches fit, or it raises.

    Args:
        config: a complete config.
        network: of what is trained first, and of the generator or what its mixture is of.
        teacher_network: the teacher's.
        teacher_params: its parameters, or their shapes.
        layout: the mesh and its rules.
        pretrains: whether there is a stage `pretrain`.

    Returns:
        {stage: program}, not compiled.

    Raises:
        InputError: as programs.pretrain_program and programs.distill_program.
    """
    found = {"pretrain": programs.pretrain_program(config, network, layout)} if pretrains else {}
    network = settings.generator_network(network, config)
    distill = programs.distill_program(config, network, teacher_network, teacher_params, layout)
    return found | {"distill": distill}


def evaluation_settings(config: Config, network: Network) -> evaluate_models.ProtocolSettings:
    """Return the protocol's settings, with the fields' full names where they are refused."""
    section = config["evaluation"]
    if not network.has_null and set(section["guidances"]) != {1}:
        raise InputError(
            f"config.evaluation.guidances is {tuple(section['guidances'])}, and the network "
            f"{network.config['name']} has no null class, which guidance needs; give (1.0,)"
        )
    with about("config.evaluation"):
        return evaluate_models.ProtocolSettings(
            **{name: value for name, value in section.items() if name in evaluate_models.SETTINGS}
        )


def check_classifier(config: Config, image_shape: tuple[int, ...]) -> None:
    """Refuse a classifier that does not fit the images."""
    with about("config.classifier.channels"):
        built = classifier.model_config(
            image_shape, config["data"]["num_classes"], classifier_settings(config)
        )
        models.build(built)


def classifier_settings(config: Config) -> classifier.FitSettings:
    """Return how the data's own classifier is fitted."""
    return classifier.FitSettings(**config["classifier"])
