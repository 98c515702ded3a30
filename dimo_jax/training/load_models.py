"""Teacher, tokenizer and network of a run, from its config, checked against each other."""

import json
from collections.abc import Mapping
from typing import Any

import jax

from dimo_jax import bundles, tokenizers
from dimo_jax import config as configs
from dimo_jax.common import hub, readers, rng
from dimo_jax.common.errors import InputError, about
from dimo_jax.common.files import AnyPath
from dimo_jax.conditions.text import MICRO_CONDITIONS, known_micro
from dimo_jax.config import mixture
from dimo_jax.models import Network
from dimo_jax.training import settings

Config = Mapping[str, Any]


def is_text(config: Config) -> bool:
    """Return whether a run is conditioned on text."""
    return configs.takes_text(config)


def open_teacher(config: Config) -> bundles.Bundle | None:
    """Return the teacher's bundle, if one is named.

    Raises:
        InputError: it cannot be read, or does not take the conditions of the run's data.
    """
    path = config["teacher"]["bundle"]
    if not path:
        return None
    with about("config.teacher.bundle"):
        bundle = bundles.load(path, kind="teacher")
    takes_text = isinstance(bundle.build().condition, dict)
    if takes_text != is_text(config):
        taken, name = ("text", "prompts") if takes_text else ("classes", "labels")
        raise InputError(
            f"config.teacher.bundle={path} takes {taken}, and config.data.name is "
            f"{config['data']['name']}; a config for it has config.data.name={name}, or pictures "
            f"with config.data.condition={'text' if takes_text else 'label'}"
        )
    num_classes = config["data"]["num_classes"]
    if not takes_text and bundle.model["num_classes"] != num_classes:
        raise InputError(
            f"config.teacher.bundle={path} has {bundle.model['num_classes']} classes, "
            f"config.data.num_classes is {num_classes}; set that to match"
        )
    _check_micro(config, bundle, f"config.teacher.bundle={path}")
    return bundle


def open_generator(
    config: Config, network: Network, tokenizer_hash: str | None
) -> bundles.Bundle | None:
    """Return the finished generator that a run starts from, if one is named.

    Args:
        config: a complete config.
        network: the run's.
        tokenizer_hash: fingerprint of the run's tokenizer; None: there is none.

    Raises:
        InputError: it cannot be read, or is of another network or tokenizer.
    """
    path = config["distill"]["generator"]["bundle"]
    if not path:
        return None
    with about("config.distill.generator.bundle"):
        bundle = bundles.load(path, kind="generator")
    what = f"config.distill.generator.bundle={path}"
    if differing := _differing(bundle.model, network.config):
        raise InputError(
            f"{what} is of another network than this run's ({'; '.join(differing)}); give the "
            "teacher that it was distilled from, or leave the field empty"
        )
    if bundle.tokenizer and tokenizer_hash not in (None, bundle.tokenizer["hash"]):
        raise InputError(
            f"{what} was trained with another tokenizer than config.tokenizer describes; set "
            "config.tokenizer to match"
        )
    _check_micro(config, bundle, what)
    return bundle


def _check_micro(config: Config, bundle: bundles.Bundle, what: str) -> None:
    """Refuse other micro-conditions than a network with text was trained with, if it knows."""
    if not is_text(config):
        return
    known = known_micro(bundle.path, bundle.provenance)
    wanted = tuple(config["prompts"][MICRO_CONDITIONS])
    if known is not None and tuple(known) != wanted:
        raise InputError(
            f"{what} was trained with the micro-conditions {tuple(known)}, config.prompts."
            f"{MICRO_CONDITIONS} is {wanted}; set that to match"
        )


def _differing(found: Config, expected: Config) -> list[str]:
    """Return where two descriptions of a network differ, as JSON values."""
    one, other = (json.loads(json.dumps(x, default=dict)) for x in (found, expected))
    return [
        f"{name} is {one.get(name)!r}, here {other.get(name)!r}"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]


def provenance(
    config: Config,
    num_steps: int,
    generator: bundles.Bundle | None,
    teacher: bundles.Bundle | None = None,
) -> dict[str, int | str]:
    """Return what a generator's bundle says of where it comes from.

    Args:
        config: of its run.
        num_steps: of its distillation.
        generator: of `open_generator`; its hash is kept as "parent".
        teacher: the bundle that was given; where it was published is kept as "repository".
    """
    parent = {} if generator is None else {"parent": generator.params_hash}
    found = hub.repository(config["teacher"]["bundle"]) if teacher else None
    found = found or (teacher and teacher.provenance.get("repository"))
    base = {"repository": found} if isinstance(found, str) else {}
    about = {"title": config["title"], "seed": config["seed"], "steps": num_steps}
    return {**about, **parent, **base}


def run_config(workdir: AnyPath) -> dict[str, Any]:
    """Return the config that a run wrote into its work directory.

    Raises:
        InputError: it cannot be read, or is no run's.
    """
    try:
        config = readers.json_object(workdir / "config.json")
        is_run = all(isinstance(config.get(x), dict) for x in ("data", "teacher"))
        is_run = is_run and isinstance(config["teacher"].get("bundle", ""), str)
        is_run = is_run and isinstance(config["data"].get("name"), str)
        reason = "it is no run's"
    except InputError as error:
        is_run, reason = False, str(error)
    if not is_run:
        raise InputError(
            f"--workdir={workdir} is no run: {workdir / 'config.json'} cannot be read ({reason}); "
            "give the folder that dimo_jax.main was given"
        )
    return config


def tokenizer_bundle(config: Config, teacher: AnyPath | None) -> AnyPath | str | None:
    """Return the path of the tokenizer's bundle; None where the config gives name and sizes.

    Args:
        config: a complete config.
        teacher: path of the teacher's bundle, if one is named.
    """
    if config["tokenizer"]["bundle"]:
        return config["tokenizer"]["bundle"]
    if teacher is None or not is_text(config):
        return None
    inside = teacher / bundles.TOKENIZER_FOLDER  # of a run; a conversion leaves it beside
    is_there = (inside / bundles.CONFIG_FILE).is_file()
    return inside if is_there else teacher.parent / bundles.VQVAE_FOLDER


def open_tokenizer(config: Config, teacher: bundles.Bundle | None) -> tuple[Any, Any]:
    """Return the tokenizer, with parameters where they come from a bundle, else None.

    Raises:
        InputError: its bundle cannot be read.
    """
    path = tokenizer_bundle(config, teacher and teacher.path)
    if path is None:
        with about("config.tokenizer"):
            return tokenizers.build(configs.without(config["tokenizer"], "bundle")), None
    with about("config.tokenizer.bundle"):
        bundle = bundles.load(path, kind="tokenizer")
    return bundle.build(), bundle.params


def open_network(
    config: Config,
    teacher: bundles.Bundle | None,
    tokenizer: tokenizers.Tokenizer,
    tokenizer_hash: str | None = None,
) -> Network:
    """Return the run's network.

    Of the teacher's bundle where there is one, else of the config's sizes.

    Args:
        config: a complete config.
        teacher: of `open_teacher`.
        tokenizer: of `open_tokenizer`.
        tokenizer_hash: its fingerprint; None: not compared.

    Raises:
        InputError: they do not belong together, or the settings ask for a null condition that the
            network does not have.
    """
    sizes = (tokenizer.num_tokens, tokenizer.codebook_size)
    if teacher is None:
        with about("config.model"):
            network = settings.network_of(config, *sizes)
    else:
        found = tuple(teacher.model.get(name) for name in ("num_tokens", "codebook_size"))
        if found != sizes:
            raise InputError(
                f"config.teacher.bundle={teacher.path} has {found[0]} tokens of {found[1]} codes, "
                f"the tokenizer {sizes[0]} of {sizes[1]}; set config.tokenizer to match"
            )
        if teacher.tokenizer and tokenizer_hash not in (None, teacher.tokenizer["hash"]):
            raise InputError(
                f"config.teacher.bundle={teacher.path} was trained with another tokenizer than "
                "config.tokenizer describes; set config.tokenizer to match"
            )
        network = settings.network_from(teacher.model, config)
    _check_null(config, network)
    return network


def start_of(network: Network, teacher: Any, seed: int) -> Any:
    """Return the parameters that a generator starts from: the teacher's, and what it has besides.

    Args:
        network: the generator's, settings.generator_network.
        teacher: the teacher's parameters.
        seed: of the first values of what the teacher does not have.
    """
    missing = jax.eval_shape(network.init, jax.random.key(0)).keys() - teacher.keys()
    if not missing:
        return teacher

    def first(key: Any) -> Any:
        return {name: x for name, x in network.init(key).items() if name in missing}

    return {**teacher, **jax.device_get(jax.jit(first)(rng.stream_key(seed, "mixture")))}


def _check_null(config: Config, network: Network) -> None:
    """Refuse guidance and dropped conditions with a network that has no null class."""
    distill = config["distill"]
    needed = {
        "config.distill.guidance=1": distill["guidance"] != 1,
        "config.distill.auxiliary.condition_drop=0": distill["auxiliary"]["condition_drop"] > 0,
    }
    if mixture.is_chosen(config):
        own = distill["mixture"]
        needed = {
            "config.distill.mixture.guidance=1": own["guidance"] != 1,
            "config.distill.mixture.condition_drop=0": own["condition_drop"] > 0,
        }
    wrong = [f"--{flag}" for flag, is_wrong in needed.items() if is_wrong]
    if wrong and not network.has_null:
        raise InputError(
            f"the network {network.config['name']} has no null class, which guidance and "
            f"dropped conditions need; give {' '.join(wrong)}"
        )
