"""The range of every number among the samplers' settings, and one check of them.

They come from flags, bundles and configs. Names mean the same in every sampler.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import quoted


class Range(NamedTuple):
    """The numbers that a setting may be.

    Attributes:
        holds: number -> whether it is one of them.
        text: the same in words, after "must be".
    """

    holds: Callable[[float | int], bool]
    text: str


AT_LEAST_0 = Range(lambda x: x >= 0, "at least 0")
AT_LEAST_1 = Range(lambda x: x >= 1, "at least 1")
ABOVE_0 = Range(lambda x: x > 0, "above 0")
INSIDE = Range(lambda x: 0 < x < 1, "above 0 and below 1")
SHARE = Range(lambda x: 0 < x <= 1, "above 0 and at most 1")

RANGES = {
    "num_steps": AT_LEAST_1,
    "warmup_steps": AT_LEAST_0,
    "temperature": ABOVE_0,
    "inverse_temperature_first": ABOVE_0,
    "inverse_temperature_last": ABOVE_0,
    "choice_temperature": AT_LEAST_0,
    "last_choice_temperature": AT_LEAST_0,
    "top_k": AT_LEAST_0,
    "top_p": SHARE,
    "sigma": Range(lambda x: 0 <= x <= 1, "in [0, 1]"),
    "end_time": INSIDE,
}


def check(settings: Mapping[str, Any], **own: Range | Collection[str]) -> None:
    """Refuse settings out of their range.

    Args:
        settings: by name; those in RANGES are checked.
        **own: ranges, or the names to choose from, of the settings that are the sampler's alone.

    Raises:
        InputError: with the field's name and range.
    """
    for name, value in settings.items():
        known = own.get(name, RANGES.get(name))
        if known is None:
            continue
        if isinstance(known, Range):
            fits, text = known.holds(value), known.text
        else:
            fits, text = value in known, f"one of {', '.join(known)}"
        if not fits:
            raise InputError(f"{name} is {quoted(value)}; it must be {text}")
