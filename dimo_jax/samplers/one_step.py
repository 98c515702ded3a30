"""Sampling a finished one-step generator with what it was trained for.

Axes: B batch, L tokens, N images.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Int, Key
from numpy import ndarray

from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import quoted
from dimo_jax.method.dimo.generate import GeneratorSettings, generate
from dimo_jax.method.masked.denoise import Apply
from dimo_jax.samplers.batches import in_batches

# What a generator's bundle says about sampling; there are no defaults for what it was trained with.
SAMPLER_FIELDS = ("ratio", "sigma", "temperature", "top_k", "top_p")


def settings_from(sampler: Mapping[str, Any], network: Any) -> GeneratorSettings:
    """Return the settings that a bundle's sampler entry describes.

    Args:
        sampler: all of SAMPLER_FIELDS and no other; "ratio" is one number or a pair [low, high].
        network: gives num_tokens, codebook_size and mask_id.

    Returns:
        Settings for method.generate.

    Raises:
        InputError: a field is missing, unknown or out of its range.
    """
    if set(sampler) != set(SAMPLER_FIELDS):
        raise InputError(
            f"the sampler of a generator has the fields {', '.join(sorted(sampler))}; "
            f"it must have {', '.join(SAMPLER_FIELDS)}"
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
    for name, holds, range_ in (
        ("ratio", 0 <= low <= high <= 1, "one number or an ascending pair in [0, 1]"),
        ("sigma", 0 <= sampler["sigma"] <= 1, "in [0, 1]"),
        ("temperature", sampler["temperature"] > 0, "above 0"),
        ("top_k", sampler["top_k"] >= 0, "at least 0"),
        ("top_p", 0 < sampler["top_p"] <= 1, "above 0 and at most 1"),
    ):
        if not holds:
            raise InputError(f"{name} is {quoted(sampler[name])}; it must be {range_}")
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
    )


# At module level, so that the second call with the same network and settings compiles nothing.
_generate = jax.jit(generate, static_argnames=("apply", "settings"))


def sample(
    apply: Apply,
    params: Any,
    key: Key[Array, "..."],
    condition: Any,
    settings: GeneratorSettings,
    batch_size: int,
    first_index: int = 0,
) -> Int[ndarray, "N L"]:
    """Tokens of any number of images, one network call for each batch.

    Args:
        apply: the network.
        params: the generator's parameters.
        key: of the whole set; image i has fold_in(key, first_index + i), whatever its batch. Or
            [N], one for each image.
        condition: pytree of arrays with a leading axis N.
        settings: as in training.
        batch_size: images in a call.
        first_index: the first image's index.

    Returns:
        [N, L] int32.
    """

    def draw(keys: Key[Array, "B"], batch: Any) -> Int[Array, "B L"]:
        return _generate(apply, params, keys, batch, settings)

    return in_batches(draw, key, condition, batch_size, first_index)
