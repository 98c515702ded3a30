"""Ways to turn a network into tokens: one file for each method, one dict, one function for all.

A method is its settings' class and a pure function of one batch; what a sweep changes is in a plan
of arrays, so that it compiles once.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Key
from numpy import ndarray

from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import quoted
from dimo_jax.models import Network
from dimo_jax.samplers import google, halton, maskgit, meissonic, one_step, solvers
from dimo_jax.samplers.batches import in_batches

__all__ = [
    "DEFAULTS",
    "SAMPLERS",
    "Sampler",
    "name_of",
    "of_generator",
    "prepare",
    "sample",
    "sample_batch",
    "settings_for",
]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """One way to sample.

    Attributes:
        settings: its settings' class.
        decode: (network, params, keys [B], condition, null condition, settings, plan) -> tokens
            [B, L] of one batch.
        make_plan: (settings, num_tokens) -> the arrays that the steps read, where it has steps.
        planned: the settings that the plan says, with what stands in their place when the others
            are compiled.
    """

    settings: type
    decode: Callable[..., Int[Array, "B L"]]
    make_plan: Callable[[Any, int], Any] | None = None
    planned: Mapping[str, Any] = dataclasses.field(default_factory=dict)


SAMPLERS = {
    "one_step": Sampler(one_step.GeneratorSettings, one_step.decode),
    **{
        name: Sampler(settings, module.decode, module.make_plan, module.PLANNED)
        for name, module, settings in (
            ("maskgit", maskgit, maskgit.MaskGitSettings),
            ("halton", halton, halton.HaltonSettings),
            ("google", google, google.GoogleSettings),
            ("meissonic", meissonic, meissonic.MeissonicSettings),
            ("solver", solvers, solvers.SolverSettings),
        )
    },
}
_NAMES = {sampler.settings: name for name, sampler in SAMPLERS.items()}
# Network -> the sampler of its authors; any other network takes "maskgit".
DEFAULTS = {"halton": "halton", "google_maskgit": "google", "meissonic": "meissonic"}


def settings_for(network: Network, entry: Mapping[str, Any]) -> Any:
    """Return the settings of an iterative sampler from plain values.

    Args:
        network: whose authors' sampler is taken where none is named.
        entry: "name", a key of SAMPLERS, "num_steps" and what else the sampler takes.

    Raises:
        InputError: a setting is unknown, missing or out of its range.
    """
    fields = dict(entry)
    name = fields.pop("name", DEFAULTS.get(network.config["name"], "maskgit"))
    if name not in tuple(SAMPLERS):  # of a file, and of any type
        raise InputError(f"there is no sampler {quoted(name)}; there are {', '.join(SAMPLERS)}")
    made = SAMPLERS[name].settings
    known = [field.name for field in dataclasses.fields(made)]
    if unknown := sorted(set(fields) - set(known)):
        raise InputError(
            f"the sampler {name!r} has no setting {', '.join(unknown)}; it has {', '.join(known)}"
        )
    try:
        return made(**fields)
    except TypeError as error:  # a value of another type, compared with a number
        raise InputError(f"the sampler {name!r} does not take these: {error}") from error


def of_generator(network: Network, entry: Mapping[str, Any]) -> Any:
    """Return the settings of a generator's sampler from its bundle's entry.

    Args:
        network: the generator's.
        entry: of a sampler in SAMPLERS where it has a "name", else of the generator's own steps.

    Raises:
        InputError: as `settings_for` and one_step.settings_from.
    """
    made = settings_for if "name" in entry else lambda net, x: one_step.settings_from(x, net)
    return made(network, entry)


def name_of(settings: Any) -> str:
    """Return the key in SAMPLERS of the sampler that takes these settings."""
    return _NAMES[type(settings)]


def prepare(settings: Any, num_tokens: int) -> tuple[Any, Any]:
    """Divide settings into what is compiled in and the arrays that its program is given.

    Args:
        settings: of any sampler.
        num_tokens: L.

    Returns:
        Settings and plan, as `sample_batch` takes them; all that differ only in what the plan says
        have the same settings here.

    Raises:
        InputError: the sampler does not decode L tokens so.
    """
    sampler = SAMPLERS[name_of(settings)]
    if sampler.make_plan is None:
        return settings, None
    fixed = dict(sampler.planned)
    if hasattr(settings, "guidance"):  # whether there is any decides the shapes
        fixed["guidance"] = 1.0 if settings.guidance == 1 else 2.0
    plan = sampler.make_plan(settings, num_tokens)
    return dataclasses.replace(settings, **fixed), plan


def sample_batch(
    network: Network,
    params: Any,
    keys: Key[Array, "B"],
    condition: Any,
    null_condition: Any,
    settings: Any,
    plan: Any,
) -> Int[Array, "B L"]:
    """Tokens of one batch, a pure function to be jitted or exported.

    Args:
        network: static under jit.
        params: its parameters.
        keys: one for each image.
        condition: pytree with leading axis B.
        null_condition: the same structure and shapes; not used without guidance.
        settings: of `prepare`; static under jit. They choose the sampler.
        plan: of `prepare`.
    """
    decode = SAMPLERS[name_of(settings)].decode
    return decode(network, params, keys, condition, null_condition, settings, plan)


# At module level, so that the second call with the same network and settings compiles nothing.
compiled = jax.jit(sample_batch, static_argnames=("network", "settings"))


def sample(
    network: Network,
    params: Any,
    key: Key[Array, "..."],
    condition: Any,
    null_condition: Any,
    settings: Any,
    batch_size: int,
    first_index: int = 0,
    until: int | None = None,
) -> Int[ndarray, "N L"]:
    """Tokens of any number of images, in batches.

    Args:
        network: any token network.
        params: its parameters.
        key: of the whole set; image i has fold_in(key, first_index + i), whatever its batch. Or
            [N], one for each image.
        condition: pytree of arrays with a leading axis N.
        null_condition: the same structure and shapes; not used, and may be None, without guidance.
        settings: of any sampler; they choose it.
        batch_size: images in a batch; a network call has twice as many with guidance.
        first_index: the first image's index.
        until: the steps after which decoding stops, of those of the settings; None: all. What is
            masked then has the mask's id where the sampler is "maskgit"; others fill it in.

    Returns:
        [N, L] int32.

    Raises:
        InputError: the settings do not fit the number of tokens, or have no steps to stop after.
    """
    fixed, plan = prepare(settings, network.num_tokens)
    if until is not None:
        if plan is None:
            raise InputError(f"the sampler {name_of(settings)!r} cannot stop after {until} steps")
        # The plan is no part of what is compiled: one program for every `until`.
        plan = plan.replace(num_steps=np.asarray(min(plan.num_steps, until), np.int32))

    def draw(keys: Key[Array, "B"], conditions: tuple[Any, Any]) -> Int[Array, "B L"]:
        return compiled(network, params, keys, *conditions, fixed, plan)

    return in_batches(draw, key, (condition, null_condition), batch_size, first_index)
