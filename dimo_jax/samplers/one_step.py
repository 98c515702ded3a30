"""Sampling a finished generator with what it was trained for, usually one step.

Axes: B batch, L tokens, N images.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Int, Key

from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import quoted
from dimo_jax.method.dimo.generate import GeneratorSettings, generate
from dimo_jax.models import Network
from dimo_jax.samplers import ranges
from dimo_jax.samplers.ranges import Range

# What a generator's bundle says about sampling; there are no defaults for what it was trained with.
SAMPLER_FIELDS = ("ratio", "sigma", "temperature", "top_k", "top_p")
# And, where it is one of several steps, all of these.
STEP_FIELDS = ("step_ratios", "step_sigma", "redraw")
_MOST_STEPS = 64
_RATIO = "one number or an ascending pair in [0, 1]"


def settings_from(sampler: Mapping[str, Any], network: Network) -> GeneratorSettings:
    """Return the settings that a bundle's sampler entry describes.

    Args:
        sampler: all of SAMPLER_FIELDS and no other, or with all of STEP_FIELDS; "ratio" is one
            number or a pair [low, high], "step_ratios" a list of them for the steps after the
            first. "num_steps" may stand in it too: only so many of the generator's steps.
        network: gives num_tokens, codebook_size and mask_id.

    Returns:
        Settings for method.generate.

    Raises:
        InputError: a field is missing, unknown or out of its range.
    """
    if set(sampler) - {"num_steps"} not in (set(SAMPLER_FIELDS), {*SAMPLER_FIELDS, *STEP_FIELDS}):
        raise InputError(
            f"the sampler of a generator has the fields {', '.join(sorted(sampler))}; "
            f"it must have {', '.join(SAMPLER_FIELDS)}, and with more than one step "
            f"{', '.join(STEP_FIELDS)} too"
        )
    ratio = sampler["ratio"]
    pair = ratio if isinstance(ratio, list | tuple) else (ratio, ratio)
    for value in (*pair, *(sampler[name] for name in SAMPLER_FIELDS if name != "ratio")):
        if type(value) not in (int, float):
            raise InputError(
                f"the sampler of a generator has {quoted(value)}, expected numbers in "
                f"{', '.join(SAMPLER_FIELDS)}"
            )
    low, high = pair if len(pair) == 2 else (1, 0)
    ranges.check(sampler, ratio=Range(lambda _: 0 <= low <= high <= 1, _RATIO))
    return GeneratorSettings(
        num_tokens=network.num_tokens,
        codebook_size=network.codebook_size,
        mask_id=network.mask_id,
        ratio_low=float(low),
        ratio_high=float(high),
        sigma=float(sampler["sigma"]),
        temperature=float(sampler["temperature"]),
        top_k=int(sampler["top_k"]),
        top_p=float(sampler["top_p"]),
        **_later_steps(sampler),
    )


def num_steps(sampler: Mapping[str, Any]) -> int:
    """Return how many steps a bundle's sampler entry describes, checked or not."""
    ratios = sampler.get("step_ratios", ())
    return 1 + len(ratios) if isinstance(ratios, list | tuple) else 1


def _later_steps(sampler: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the steps after the first, where the entry has any."""
    most = num_steps(sampler)
    wanted = sampler.get("num_steps", most)
    if type(wanted) is not int or not 1 <= wanted <= most:
        raise InputError(
            f"num_steps is {quoted(wanted)}; it must be {'1 to ' if most > 1 else ''}{most}, as "
            "many as the generator was distilled for"
        )
    if "step_ratios" not in sampler:
        return {}
    ratios, sigma, redraw = (sampler[name] for name in STEP_FIELDS)
    known = isinstance(ratios, list | tuple) and 0 < len(ratios) < _MOST_STEPS
    if not known or not all(type(x) in (int, float) and 0 < x <= 1 for x in ratios):
        raise InputError(
            f"step_ratios is {quoted(ratios)}; it must be 1 to {_MOST_STEPS - 1} numbers above 0 "
            "and at most 1, one for each step after the first"
        )
    if type(sigma) not in (int, float) or not 0 <= sigma <= 1:
        raise InputError(f"step_sigma is {quoted(sigma)}; it must be in [0, 1]")
    if type(redraw) is not bool:
        raise InputError(f"redraw is {quoted(redraw)}; it must be true or false")
    used = tuple(map(float, ratios[: wanted - 1]))
    return {"step_ratios": used, "step_sigma": float(sigma), "redraw": redraw}


def decode(
    network: Network,
    params: Any,
    keys: Key[Array, "B"],
    condition: Any,
    null_condition: Any,
    settings: GeneratorSettings,
    plan: None = None,
) -> Int[Array, "B L"]:
    """Return tokens as `generate`; null condition and plan are not used."""
    del null_condition, plan
    return generate(network.apply, params, keys, condition, settings)
