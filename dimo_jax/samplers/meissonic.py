"""Meissonic's own decoding: Google's MaskGIT with guidance, a time, and noise that falls with it.

It differs from samplers/google.py in the guidance, in the network's being told the number of steps
that follow, and in a noise that ends with the last step and not one after it. Axes: B batch, L
tokens, V codes, S steps.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dimo_jax.method.masked import guidance
from dimo_jax.models import Network
from dimo_jax.samplers import google, ranges


@dataclasses.dataclass(frozen=True)
class MeissonicSettings:
    """How a grid is decoded; the defaults are those that its authors recommend.

    Attributes:
        num_steps: S, at most the number of tokens. The network sees S - 1 .. 0, so that another S
            is another input to it, not only a coarser way.
        guidance: s in u + s (c - u), where u is the negative prompt.
        choice_temperature: scale of the Gumbel noise on the confidence at the first step.
        last_choice_temperature: at the last; linear between them.
        temperature: divides the logits.
        top_k: 0 for all.
        top_p: 1 for all.

    Raises:
        InputError: on a value outside its range.
    """

    num_steps: int = 64
    guidance: float = 9.0
    choice_temperature: float = 2.0
    last_choice_temperature: float = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        """Check the values, since they come from flags and files."""
        ranges.check(vars(self))


# What the plan says, with what stands in its place where the rest is compiled in.
PLANNED = {"num_steps": 1, "choice_temperature": 0.0, "last_choice_temperature": 0.0}


class Plan(flax.struct.PyTreeNode):
    """The numbers of each step, and how many steps there are: traced, so that no other S compiles.

    Attributes:
        num_steps: scalar, at most L.
        lengths: [L] tokens to mask after a step; 0 from num_steps on, as in the next.
        noise: [L] scale of the Gumbel noise on the confidence.
        guidance: scalar scale.
    """

    num_steps: Int[Array | np.ndarray, ""]
    lengths: Int[Array | np.ndarray, "L"]
    noise: Float[Array | np.ndarray, "L"]
    guidance: Float[Array | np.ndarray, ""]


def make_plan(settings: MeissonicSettings, num_tokens: int) -> Plan:
    """Return what the settings say of each step.

    Args:
        settings: of the decoding.
        num_tokens: L.

    Returns:
        NumPy arrays.

    Raises:
        InputError: there are more steps than tokens.
    """
    first, last = settings.choice_temperature, settings.last_choice_temperature
    common = google.make_plan(google.GoogleSettings(num_steps=settings.num_steps), num_tokens)
    noise = np.linspace(first, last, settings.num_steps, dtype=np.float32)
    return Plan(
        num_steps=common.num_steps,
        lengths=common.lengths,
        noise=np.pad(noise, (0, num_tokens - settings.num_steps)),
        guidance=np.asarray(settings.guidance, np.float32),
    )


def decode(
    network: Network,
    params: Any,
    keys: Key[Array, "B"],
    condition: Any,
    null_condition: Any,
    settings: MeissonicSettings,
    plan: Plan | None = None,
) -> Int[Array, "B L"]:
    """Tokens in `settings.num_steps` network calls, each of 2 B grids where there is guidance.

    At step i an image's key gives split(fold_in(key, i)): the first draws gumbel [L, V] for its
    tokens (argmax of logits + noise), the second gumbel [L] for the order.

    Args:
        network: what it predicts from mask_id on is never drawn.
        params: its parameters.
        keys: [B], one for each image.
        condition: pytree with leading axis B; a dict is given the entry "timestep" [B] besides,
            the number of steps that follow.
        null_condition: the same structure and shapes, usually of the negative prompt; looked at
            only where guidance is not 1.
        settings: static under jit.
        plan: that of the settings; given, it stands for num_steps and the noise, and for all of
            guidance but whether it is 1.

    Returns:
        [B, L] int32, all below mask_id.

    Raises:
        InputError: there are more steps than tokens.

    Source: viiika/Meissonic, src/pipeline.py and src/scheduler.py, which is aMUSEd's.
    """
    batch, mask_id = keys.shape[0], network.mask_id
    chosen: Any = jax.tree.map(jnp.asarray, plan or make_plan(settings, network.num_tokens))
    null = None if settings.guidance == 1 else null_condition

    def logits_at(tokens: Int[Array, "B L"], index: Int[Array, ""] | int) -> Float[Array, "B L V"]:
        time = jnp.full((batch,), chosen.num_steps - 1 - index, jnp.float32)

        def timed(condition: Any) -> Any:
            return {**condition, "timestep": time} if isinstance(condition, Mapping) else condition

        logits = guidance.guided_logits(
            network.apply, params, tokens, timed(condition), timed(null), chosen.guidance
        )
        return logits[..., :mask_id]

    start = jnp.full((batch, network.num_tokens), mask_id, jnp.int32)
    step = functools.partial(google.decode_step, logits_at, settings, chosen, keys, mask_id)
    # One trace whatever S is: a Python loop over steps would compile S copies of the network.
    return jax.lax.fori_loop(0, chosen.num_steps, step, (start, start))[1]
