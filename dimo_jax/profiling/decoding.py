"""A teacher's decoding as one function of arrays, for timing it and for planning it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Int

from dimo_jax import samplers
from dimo_jax.common.errors import InputError
from dimo_jax.models import Network


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
    if guidance is None:
        guidance = float(config["distill"]["guidance"]) if network.has_null else 1.0
    if guidance != 1 and not network.has_null:
        raise InputError(
            f"the network {network.config['name']} has no null class, which guidance needs; give "
            "--guidance=1"
        )
    more = {"guidance": float(guidance)} if network.has_null else {}
    every = [samplers.settings_for(network, {"num_steps": number, **more}) for number in steps]
    prepared = [samplers.prepare(chosen, network.num_tokens) for chosen in every]
    fixed, plans = prepared[0][0], [plan for _, plan in prepared]
    # As leaves: where types are checked, what the compiler puts in their place makes no Plan.
    form = jax.tree.structure(plans[0])

    def tokens(params: Any, keys: Any, condition: Any, null: Any, *leaves: Any) -> Any:
        plan = jax.tree.unflatten(form, leaves)
        return samplers.sample_batch(network, params, keys, condition, null, fixed, plan)

    return Decoding(samplers.name_of(fixed), float(guidance), plans, tokens)
