"""The decoding of Google's original MaskGIT: predict all, keep the most confident, mask the rest.

Unlike samplers/maskgit.py it re-masks down to a cosine, by one cut-off that ties may pass, and what
it returns is the last prediction as a whole. It knows no guidance: Google's networks have no null
class. Axes: B batch, L tokens, V vocabulary, S steps, N images.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dimo_jax.common.errors import InputError
from dimo_jax.method.masked import guidance
from dimo_jax.models import Network
from dimo_jax.samplers import ranges


@dataclasses.dataclass(frozen=True)
class GoogleSettings:
    """How a grid is decoded; the defaults are those of the paper's ImageNet samples.

    Attributes:
        num_steps: S, at most the number of tokens.
        choice_temperature: the initial scale of the Gumbel noise on the confidence.
        temperature: divides the logits.
        top_k: 0 for all.
        top_p: 1 for all.

    Raises:
        InputError: on a value outside its range.
    """

    num_steps: int = 8
    choice_temperature: float = 4.5
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        """Check the values, since they come from flags and files."""
        ranges.check(vars(self))


def mask_lengths(num_steps: int, num_tokens: int) -> tuple[int, ...]:
    """Return how many tokens are to be masked after each step, before the limits that a grid sets.

    Args:
        num_steps: S.
        num_tokens: L.

    Returns:
        S numbers: the floor of L times the cosine of a quarter turn's share.

    Source: google-research/maskgit, libml/mask_schedule.py and libml/parallel_decode.py.
    """
    # In float32 as there: at two thirds of the way 256 cos(pi/3) comes out as 127, not as 128.
    ratio = np.arange(1, num_steps + 1, dtype=np.float32) / np.float32(num_steps)
    angle = np.float32(math.pi / 2) * ratio
    # float64's cosine, rounded: NumPy's own in float32 differs in the last bit between machines.
    share = np.clip(np.cos(angle.astype(np.float64)).astype(np.float32), np.float32(1e-6), 1)
    return tuple(int(n) for n in np.floor(np.float32(num_tokens) * share))


# What the plan says, with what stands in its place where the rest is compiled in.
PLANNED = {"num_steps": 1, "choice_temperature": 0.0}


class Plan(flax.struct.PyTreeNode):
    """The numbers of each step, and how many steps there are: traced, so that no other S compiles.

    Attributes:
        num_steps: scalar, at most L.
        lengths: [L] tokens to mask after a step; 0 from num_steps on, as in the next.
        noise: [L] scale of the Gumbel noise on the confidence.
    """

    num_steps: Int[Array | np.ndarray, ""]
    lengths: Int[Array | np.ndarray, "L"]
    noise: Float[Array | np.ndarray, "L"]


def make_plan(settings: GoogleSettings, num_tokens: int) -> Plan:
    """Return what the settings say of each step.

    Args:
        settings: of the decoding.
        num_tokens: L.

    Returns:
        NumPy arrays.

    Raises:
        InputError: there are more steps than tokens.
    """
    steps = settings.num_steps
    if steps > num_tokens:
        raise InputError(
            f"num_steps is {steps}, but there are {num_tokens} tokens and each step settles at "
            "least one; lower it"
        )
    progress = np.arange(1, steps + 1) / steps
    pad = (0, num_tokens - steps)
    return Plan(
        num_steps=np.asarray(steps, np.int32),
        lengths=np.pad(np.asarray(mask_lengths(steps, num_tokens), np.int32), pad),
        noise=np.pad(np.float32(settings.choice_temperature * (1 - progress)), pad),
    )


def decode_step(
    logits_at: Callable,
    settings: Any,
    plan: Any,
    keys: Key[Array, "B"],
    mask_id: int,
    index: Int[Array, ""] | int,
    grids: tuple[Int[Array, "B L"], Int[Array, "B L"]],
) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
    """From the masked grid: all tokens predicted, then the least confident masked again.

    Args:
        logits_at: (tokens [B, L], index) -> logits [B, L, mask_id].
        settings: with temperature, top_k and top_p.
        plan: with the arrays lengths and noise, of which those at `index` are used.
        keys: [B].
        mask_id: the id of [MASK].
        index: of the step; may be traced.
        grids: what the step before gave: tokens with [MASK] among them, and what it predicted.

    Returns:
        The same of this step.
    """
    tokens, _ = grids
    # fold_in and then one split, as in samplers/maskgit.py: the tests draw the same in NumPy.
    pairs = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, index)))(keys)
    logits = guidance.shape_logits(
        logits_at(tokens, index), settings.temperature, settings.top_k, settings.top_p
    )
    unknown = tokens == mask_id
    drawn = jax.vmap(jax.random.categorical)(pairs[:, 0], logits).astype(tokens.dtype)
    drawn = jnp.where(unknown, drawn, tokens)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    confidence = jnp.take_along_axis(log_probs, drawn[..., None], axis=-1)[..., 0]
    noise = jax.vmap(lambda key: jax.random.gumbel(key, confidence.shape[1:]))(pairs[:, 1])
    confidence = jnp.where(unknown, confidence + plan.noise[index] * noise, jnp.inf)
    # At least one token is settled and one left, also where the cosine says otherwise.
    length = jnp.minimum(plan.lengths[index], jnp.sum(unknown, axis=-1, keepdims=True) - 1)
    length = jnp.maximum(1, length)
    cut_off = jnp.take_along_axis(jnp.sort(confidence, axis=-1), length, axis=-1)
    return jnp.where(confidence < cut_off, mask_id, drawn), drawn


def decode(
    network: Network,
    params: Any,
    keys: Key[Array, "B"],
    condition: Any,
    null_condition: Any,
    settings: GoogleSettings,
    plan: Plan | None = None,
) -> Int[Array, "B L"]:
    """Tokens in `settings.num_steps` network calls.

    At step i an image's key gives split(fold_in(key, i)): the first draws gumbel [L, mask_id] for
    its tokens (argmax of logits + noise), the second gumbel [L] for the order.

    Args:
        network: what it predicts from mask_id on, [MASK] above all, is never drawn.
        params: its parameters.
        keys: [B], one for each image.
        condition: pytree with leading axis B.
        null_condition: of any kind; there is no guidance.
        settings: static under jit.
        plan: that of the settings; given, it stands for num_steps and choice_temperature.

    Returns:
        [B, L] int32, all below mask_id.

    Raises:
        InputError: there are more steps than tokens.

    Source: google-research/maskgit, libml/parallel_decode.py; Chang et al. 2022, section 3.2.
    """
    chosen: Any = jax.tree.map(jnp.asarray, plan or make_plan(settings, network.num_tokens))
    mask_id = network.mask_id

    def logits_at(tokens: Int[Array, "B L"], _: Any) -> Float[Array, "B L V"]:
        return network.apply(params, tokens, condition)[..., :mask_id]

    start = jnp.full((keys.shape[0], network.num_tokens), mask_id, jnp.int32)
    step = functools.partial(decode_step, logits_at, settings, chosen, keys, mask_id)
    # One trace whatever S is: a Python loop over steps would compile S copies of the network.
    return jax.lax.fori_loop(0, chosen.num_steps, step, (start, start))[1]
