"""The fields of distill.mixture, for distill.method=mixture, and what they must satisfy. No jax."""

from collections.abc import Mapping
from typing import Any

from dimo_jax.common.errors import InputError
from dimo_jax.common.fields import Field, names, number, several, whole
from dimo_jax.config.sizes import PICTURE_SETS, WIDTH

_FALLING = ("arccos", "cosine")  # mask schedules of a time from 0, all masked, to 1, none
_AT_LEAST_0 = number(0)

FIELDS: dict[str, Field] = {
    "width": Field(512, WIDTH, "of the projection of lambda"),
    "replicas": Field(32, whole(2, 4096), "numbers lambda of an example"),
    "parts": Field(
        1,
        whole(1, 4096),
        "of these, computed one after the other; they divide them. Of more than one each is "
        "computed twice",
    ),
    "delta": Field(0.05, number(above=0, below=1), "time of a step of the teacher, of 0 to 1"),
    "teacher_steps": Field(8, whole(2, 10_000), "in which the noise of its order falls to 0"),
    "choice_temperature": Field(4.5, _AT_LEAST_0, "of that noise, and of the generator's"),
    "data_weight": Field(
        0.1, _AT_LEAST_0, "of the correlation of the data's tokens; 0: none is learned"
    ),
    "data_schedule": Field(
        "sigmoid", names("sigmoid", "linear", "constant"), "how it falls with the time"
    ),
    "condition_drop": Field(0.1, number(0, below=1), "share of conditions that are left out"),
    "steps": Field(
        (4,),
        several(whole(1, 10_000), least=1, distinct=True),
        "of the generator: its bundle's, then others to measure",
    ),
    "guidance": Field(1.0, _AT_LEAST_0, "of the generator, u + s (c - u); 1: none"),
}


def is_chosen(config: Mapping[str, Any]) -> bool:
    """Return whether a run learns by Di4C; one of before there was the choice does not."""
    return config.get("distill", {}).get("method") == "mixture"


def validate(config: Mapping[str, Any]) -> None:
    """Check that there is what Di4C learns from: tokens by class, and masks of a known time.

    Args:
        config: a complete config, each of whose fields follows its rule.

    Raises:
        InputError: one sentence on the first field that is wrong.
    """
    section, data = config["distill"], config["data"]
    if not is_chosen(config):
        return
    if section["steps"] != 1:
        raise InputError(
            f"config.distill.steps is {section['steps']}, of a generator of Di[M]O, and "
            "config.distill.method is mixture, whose steps are config.distill.mixture.steps; leave "
            "it 1"
        )
    text = " with texts" if data["condition"] == "text" else ""
    mixture, name = section["mixture"], data["name"]
    if mixture["replicas"] % mixture["parts"]:
        raise InputError(
            f"config.distill.mixture.replicas is {mixture['replicas']}, not divisible by "
            f"config.distill.mixture.parts {mixture['parts']}; change one of them"
        )
    if name not in (*PICTURE_SETS, "tokens", "joint") or data["condition"] == "text":
        raise InputError(
            f"config.distill.method is mixture, which learns from pictures by class, and "
            f"config.data.name is {name}{text}; give encoded pictures, with "
            "--config.data.name=tokens --config.data.path=FOLDER, or another method"
        )
    if config["model"]["name"] != "maskgit":
        raise InputError(
            f"config.distill.method is mixture, for the network maskgit, and config.model.name is "
            f"{config['model']['name']}; change one of them"
        )
    mask = section["mask"]
    if mask["schedule"] not in _FALLING or (mask["min_ratio"], mask["max_ratio"]) != (0, 1):
        raise InputError(
            "config.distill.method is mixture, whose masks are of all tokens at the time 0 and of "
            f"none at 1, and config.distill.mask is {mask['schedule']} from {mask['min_ratio']} to "
            f"{mask['max_ratio']}; give one of {', '.join(_FALLING)}, from 0 to 1"
        )
