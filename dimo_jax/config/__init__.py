"""The config of a run: all fields with their defaults, and what decides a stage. Imports no jax.

A file in configs/ takes `default_config()` and changes fields; the command line changes them again
with --config.section.field=value. validation.py then checks all of them, before anything is
computed.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dimo_jax.common import fields
from dimo_jax.common.fields import Field
from dimo_jax.config import mixture
from dimo_jax.config.defaults import FIELDS
from dimo_jax.config.sizes import MODEL_FIELDS, TEXT_ENCODER_FIELDS, TOKENIZER_FIELDS


def default_config() -> ConfigDict:
    """Return all fields of a run with their defaults.

    The method's as the released code has them.
    """
    return ConfigDict(fields.defaults(FIELDS))


def fields_of(config: Mapping[str, Any]) -> dict[str, Field]:
    """{'section.field': field} of everything that a config with these names may have.

    Args:
        config: whose model.name and tokenizer.name decide which sizes there are.
    """
    model, tokenizer = (str(_at(config, name, "name")) for name in ("model", "tokenizer"))
    own = MODEL_FIELDS.get(model, MODEL_FIELDS["maskgit"])
    more = {
        "text_encoder": TEXT_ENCODER_FIELDS,
        "tokenizer": TOKENIZER_FIELDS.get(tokenizer, {}),
    }
    tree = {name: {**x, **more[name]} if name in more else x for name, x in FIELDS.items()}
    return flat({**tree, "model": {"name": FIELDS["model"]["name"], **own}})


def _at(config: Mapping[str, Any], *names_: str) -> Any:
    """Return a value inside a config that may lack sections; None where it is not there."""
    found: Any = config
    for name in names_:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'section.field': value} of all fields."""
    fields = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        fields |= flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return fields


def trains_teacher(config: Mapping[str, Any]) -> bool:
    """Return whether the run has a stage `pretrain`."""
    return not (config["teacher"]["bundle"] or config["teacher"]["random"])


def takes_text(config: Mapping[str, Any]) -> bool:
    """Return whether a run is conditioned on text: on prompts, or on the texts of its pictures."""
    data = config["data"]
    return data["name"] == "prompts" or data.get("condition") == "text"


def step_ratios(section: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the share of tokens that is masked again before each step after the first.

    Args:
        section: `distill`. Without ratios they fall evenly from two thirds to a third
            (docs/few_steps.md); before an only later step it is two thirds.
    """
    if section["step_ratios"]:
        return tuple(section["step_ratios"])
    later = section["steps"] - 1
    return tuple(round(2 / 3 - k / 3 / max(1, later - 1), 4) for k in range(later))


def without(section: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return a section's fields but these."""
    return {name: value for name, value in section.items() if name not in names}


# What a stage's result depends on; the rest only says how often something is logged or saved.
_COMPUTED = ("compute_dtype", "fast_compile")
# Where data and bundles lie does not matter; what is in them goes by its hash. Nor do the parts of
# a batch: the same training goes on with others.
_ELSEWHERE = (
    *("data.directory", "data.path", "tokenizer.bundle", "text_encoder.bundle", "pretrain.parts"),
    *("distill.parts", "prompts.path", "prompts.texts", "prompts.field", "prompts.cache"),
    *("distill.generator.bundle", "distill.mixture.parts"),
)
_OF_LATER_STEPS = (
    *("distill.steps", "distill.step_ratios", "distill.step_sigma", "distill.step_tokens"),
    *("distill.step_shares", "distill.step_remask", "distill.auxiliary.steps"),
)
_OF_MIXTURE = ("distill.method", "distill.mixture.")
# How the generator is sampled, of which its training knows nothing.
_SAMPLED = ("distill.mixture.steps", "distill.mixture.guidance")
STAGE_SECTIONS = {
    "pretrain": ("seed", *_COMPUTED, "data", "tokenizer", "model", "pretrain"),
    "distill": ("seed", *_COMPUTED, "data", "tokenizer", "model", "distill"),
    "evaluation": ("seed", "data", "tokenizer", "sampler", "evaluation", "classifier"),
}


def stage_settings(config: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Return the fields that decide a stage's result, as plain JSON values.

    Args:
        config: a complete config.
        stage: a key of STAGE_SECTIONS.

    Returns:
        {path: value}, without where data happens to lie.
    """
    names = STAGE_SECTIONS[stage]
    if stage != "evaluation" and takes_text(config):
        names = (*names, "prompts", "text_encoder")
    fields = flat({name: config[name] for name in names})
    if stage == "evaluation" and mixture.is_chosen(config):
        fields |= {name: flat(config)[name] for name in _SAMPLED}
    elif stage == "distill":
        fields = without(fields, *_SAMPLED)
    fields = json.loads(json.dumps(fields, default=list))
    # Of other data it means nothing, and their runs were begun before there was such a field.
    own = () if config["data"]["name"] == "tokens" else ("data.num_test",)
    for name in (*_ELSEWHERE, *own):
        fields.pop(name, None)
    # Runs that were begun before there were others go on.
    if fields["data.condition"] == "label":
        del fields["data.condition"]
    if fields.get("sampler.ratio") == []:
        del fields["sampler.ratio"]
    if fields.get("distill.steps") == 1:  # of one step the others mean nothing
        for name in _OF_LATER_STEPS:
            del fields[name]
    elif "distill.steps" in fields:  # by another default it would be another training
        fields["distill.step_ratios"] = list(step_ratios(config["distill"]))
    if fields.get("distill.method") == "dimo":
        fields = {k: x for k, x in fields.items() if not k.startswith(_OF_MIXTURE)}
    if stage == "distill":
        fields["teacher.dtype"] = config["teacher"]["dtype"]
    return fields


def settings_hash(settings: Mapping[str, Any]) -> str:
    """SHA-256 of plain settings, independent of their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
