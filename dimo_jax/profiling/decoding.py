"""A teacher's decoding as one function of arrays, for timing it and for planning it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Int

from dimo_jax import samplers
from dimo_jax.common.errors import InputError
from dimo_jax.models import Network
from dimo_jax.samplers import google, halton, maskgit, meissonic

# The samplers of the networks' authors (samplers.DEFAULTS).
_DECODINGS = {"google": google, "halton": halton, "maskgit": maskgit, "meissonic": meissonic}


class Decoding(NamedTuple):
    """How a teacher draws tokens.

    Attributes:
        name: of the sampler.
        guidance: its scale; at 1 there is no unconditional branch.
        plans: for each number of steps, the arrays that its steps read.
        tokens: (params, keys [B], condition, null condition, *leaves of a plan) -> [B, L] int32;
            all numbers of steps share it, since they differ in the plan alone.
    """

    name: str
    guidance: float
    plans: list[Any]
    tokens: Callable[..., Int[Array, "B L"]]


def teacher_decoding(
    config: Mapping[str, Any], network: Network, steps: Sequence[int], guidance: float | None
) -> Decoding:
    """Return the sampler of the teacher's authors.

    Args:
        config: a complete config.
        network: the teacher's.
        steps: numbers of steps.
        guidance: scale; None: config.distill.guidance, and 1 for a network without a null class.

    Raises:
        InputError: guidance without a null class, or steps that the sampler does not take.
    """
    name = samplers.DEFAULTS.get(network.config["name"], "maskgit")
    if guidance is None:
        guidance = config["distill"]["guidance"] if network.has_null else 1.0
    if guidance != 1 and not network.has_null:
        raise InputError(
            f"the network {network.config['name']} has no null class, which guidance needs; give "
            "--guidance=1"
        )
    takes_null = name != "google"
    extra = {"guidance": float(guidance)} if takes_null else {}
    every = [samplers.SAMPLERS[name].settings(num_steps=number, **extra) for number in steps]
    plans = [_DECODINGS[name].make_plan(chosen, network.num_tokens) for chosen in every]
    # As leaves: where types are checked, what the compiler puts in their place makes no Plan.
    form = jax.tree.structure(plans[0])

    def tokens(params: Any, keys: Any, condition: Any, null: Any, *leaves: Any) -> Any:
        conditions = (condition, null) if takes_null else (condition,)
        return _DECODINGS[name].decode(
            network.apply,
            params,
            keys,
            *conditions,
            every[0],
            network.num_tokens,
            network.mask_id,
            jax.tree.unflatten(form, leaves),
        )

    return Decoding(name, float(guidance), plans, tokens)
