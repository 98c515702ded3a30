"""Tau-leaping, theta-RK-2 and theta-trapezoidal: solvers of the absorbing process in time.

Time runs from 1, all masked, down to nearly 0. A masked position changes to code v at the rate
mu_t(v) = p(v) / t, all others stay. A leap holds the rates for a while, so that the number of
changes of a position is Poisson; it changes if there is exactly one. The two theta methods leap to
a point within the step, ask the network there again, and mix both rates.
Source: Ren et al. 2025, "Fast Solvers for Discrete Diffusion Models" (arXiv 2502.00234).
Axes: B batch, L tokens, V vocabulary, K codes, S steps, N images.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dimo_jax.method.masked import guidance
from dimo_jax.models import Network
from dimo_jax.samplers import ranges

METHODS = ("tau_leaping", "theta_rk2", "theta_trapezoidal")
GUIDANCE_SCHEDULES = ("linear", "constant")


@dataclasses.dataclass(frozen=True)
class SolverSettings:
    """How the process is solved.

    Attributes:
        num_steps: S, of equal length, from 1 to end_time. Compare methods by `network_calls`.
        method: a name in METHODS.
        theta: where within a step the second rates are taken, as a share of it; tau-leaping has no
            such point. In (0, 1], and below 1 for theta_trapezoidal.
        end_time: where the solver stops; what is masked there becomes the most probable code.
        temperature: divides the logits.
        guidance: the scale s in u + s (c - u) at time 0; s = 1 + w in MaskGit's own terms.
        guidance_schedule: "linear" grows from 1 at time 1 to s at time 0; "constant".

    Raises:
        InputError: on a value outside its range.
    """

    num_steps: int
    method: str = "theta_trapezoidal"
    theta: float = 0.5
    end_time: float = 0.01
    temperature: float = 1.0
    guidance: float = 1.0
    guidance_schedule: str = "linear"

    def __post_init__(self):
        """Check the values, since they come from flags and files."""
        theta = ranges.INSIDE if self.method == "theta_trapezoidal" else ranges.SHARE
        ranges.check(vars(self), method=METHODS, guidance_schedule=GUIDANCE_SCHEDULES, theta=theta)


def network_calls(settings: SolverSettings) -> int:
    """Return the grids that the network is asked about for one image.

    The cost to compare samplers at.

    Args:
        settings: of the solver.

    Returns:
        1 for each step of tau-leaping, 2 for each of the others, 1 for the codes that end it; twice
        as many with guidance.
    """
    steps = settings.num_steps * (1 if settings.method == "tau_leaping" else 2)
    return (steps + 1) * (1 if settings.guidance == 1 else 2)


def mixing_weights(method: str, theta: float) -> tuple[float, float]:
    """Return how the second leap's rates are made of the two at hand.

    Args:
        method: "theta_rk2", whose second leap starts where the step does and is as long, or
            "theta_trapezoidal", whose second leap starts at the inner point and is the rest of it.
        theta: the inner point.

    Returns:
        The factors of the rates at the step's start and at the inner point. For the trapezoidal
        method -alpha_2 and alpha_1; times 1 - theta they are the form for a leap of the whole step.

    Source: arXiv 2502.00234.
    """
    if method == "theta_rk2":
        return 1 - 1 / (2 * theta), 1 / (2 * theta)
    scale = 1 / (2 * theta * (1 - theta))
    return -scale * ((1 - theta) ** 2 + theta**2), scale


def mixed_rates(
    method: str, theta: float, at_start: Float[Array, "*N K"], at_inner: Float[Array, "*N K"]
) -> Float[Array, "*N K"]:
    """Return the second leap's rates.

    Args:
        method: "theta_rk2" or "theta_trapezoidal".
        theta: the inner point.
        at_start: rates at the step's start.
        at_inner: rates at the inner point; 0 where the first leap wrote a token.

    Returns:
        The sum with `mixing_weights`, where it is negative 0.
    """
    start_weight, inner_weight = mixing_weights(method, theta)
    return jnp.maximum(start_weight * at_start + inner_weight * at_inner, 0.0)


def rates(
    logits: Float[Array, "B L V"],
    tokens: Int[Array, "B L"],
    time: Float[Array, ""] | float,
    mask_id: int,
    temperature: float = 1.0,
) -> Float[Array, "B L K"]:
    """Return the rates mu_t(v) at which positions change to each code.

    Args:
        logits: of the network at these tokens; may hold one for [MASK], which takes its share of
            the probability and leads nowhere.
        tokens: where they are not mask_id all rates are 0.
        time: t.
        mask_id: the id of [MASK], the first after the codes.
        temperature: divides the logits.

    Returns:
        [B, L, K], K = mask_id codes.

    Source: the paper's sigma(t) / expm1(sigma_bar(t)) with sigma_bar(t) = -log(1 - (1 - delta) t).
    """
    # That quotient is exactly 1 / t, whatever delta.
    probs = jax.nn.softmax(logits / temperature, axis=-1)[..., :mask_id]
    return jnp.where((tokens == mask_id)[..., None], probs / time, 0.0)


def tau_leap(
    keys: Key[Array, "B"],
    tokens: Int[Array, "B L"],
    rate: Float[Array, "B L K"],
    duration: Float[Array | np.ndarray, ""] | float,
    mask_id: int,
) -> Int[Array, "B L"]:
    """Return the grid after a while of constant rates.

    An image's key is split in two: uniform [L] decides which positions change, gumbel [L, K] to
    what (argmax of log rate + noise).

    Args:
        keys: [B].
        tokens: the grid.
        rate: of each change.
        duration: of the leap.
        mask_id: positions with another token stay, whatever their rates.

    Returns:
        [B, L]. A position changes if exactly one change falls into the leap, as in the original.
    """
    pairs = jax.vmap(jax.random.split)(keys)
    # Poisson counts of each code, exactly one in all: their sum is Poisson too, with the mean
    # Lambda, so that has the probability Lambda exp(-Lambda), and which code it is depends on the
    # rates alone. One uniform number instead of K counts.
    mean = duration * rate.sum(-1)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, tokens.shape[1:]))(pairs[:, 0])
    drawn = jax.vmap(jax.random.categorical)(pairs[:, 1], jnp.log(rate)).astype(tokens.dtype)
    jumps = (uniform < mean * jnp.exp(-mean)) & (tokens == mask_id)
    return jnp.where(jumps, drawn, tokens)


# What the plan says, with what stands in its place where the rest is compiled in.
PLANNED = {"num_steps": 1, "end_time": 0.5}


class Plan(flax.struct.PyTreeNode):
    """What of the settings is traced, so that other values compile nothing.

    Attributes:
        num_steps: S.
        end_time: where the solver stops.
        guidance: the scale at time 0.
    """

    num_steps: Int[Array | np.ndarray, ""]
    end_time: Float[Array | np.ndarray, ""]
    guidance: Float[Array | np.ndarray, ""]


def make_plan(settings: SolverSettings, num_tokens: int) -> Plan:
    """Return the plan of the settings, whatever the number of tokens, as NumPy arrays."""
    del num_tokens
    return Plan(
        num_steps=np.asarray(settings.num_steps, np.int32),
        end_time=np.asarray(settings.end_time, np.float32),
        guidance=np.asarray(settings.guidance, np.float32),
    )


def _solver_step(
    rates_at: Callable,
    settings: SolverSettings,
    plan: Plan,
    keys: Key[Array, "B"],
    mask_id: int,
    index: Int[Array, ""] | int,
    tokens: Int[Array, "B L"],
) -> Int[Array, "B L"]:
    """From time 1 - index h to one step h later."""
    length = (1 - plan.end_time) / plan.num_steps
    time, theta = 1 - index * length, settings.theta
    pairs = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, index)))(keys)
    rate = rates_at(tokens, time)
    if settings.method == "tau_leaping":
        return tau_leap(pairs[:, 0], tokens, rate, length, mask_id)
    inner = tau_leap(pairs[:, 0], tokens, rate, theta * length, mask_id)
    inner_rate = rates_at(inner, time - theta * length)
    mixed = mixed_rates(settings.method, theta, rate, inner_rate)
    if settings.method == "theta_rk2":
        return tau_leap(pairs[:, 1], tokens, mixed, length, mask_id)
    return tau_leap(pairs[:, 1], inner, mixed, (1 - theta) * length, mask_id)


def decode(
    network: Network,
    params: Any,
    keys: Key[Array, "B"],
    condition: Any,
    null_condition: Any,
    settings: SolverSettings,
    plan: Plan | None = None,
) -> Int[Array, "B L"]:
    """Tokens by one of the solvers; network calls have 2 B grids where there is guidance.

    At step i an image's key gives split(fold_in(key, i)), one half for each leap (see `tau_leap`).

    Args:
        network: its apply, num_tokens and mask_id are used.
        params: its parameters.
        keys: [B], one for each image.
        condition: pytree with leading axis B.
        null_condition: the same structure and shapes; looked at only where guidance is not 1.
        settings: static under jit.
        plan: that of the settings; given, it stands for num_steps and end_time, and for all of
            guidance but whether it is 1.

    Returns:
        [B, L] int32, all below mask_id.

    Source: arXiv 2502.00234, its image experiments on MaskGit.
    """
    mask_id = network.mask_id
    chosen: Any = jax.tree.map(jnp.asarray, plan or make_plan(settings, network.num_tokens))
    null = None if settings.guidance == 1 else null_condition

    def logits_at(tokens: Int[Array, "B L"], time: Array) -> Float[Array, "B L V"]:
        grown = 1 - time if settings.guidance_schedule == "linear" else 1.0
        scale = 1 + (chosen.guidance - 1) * grown
        return guidance.guided_logits(network.apply, params, tokens, condition, null, scale)

    def rates_at(tokens: Int[Array, "B L"], time: Array) -> Float[Array, "B L K"]:
        return rates(logits_at(tokens, time), tokens, time, mask_id, settings.temperature)

    tokens = jnp.full((len(keys), network.num_tokens), mask_id, jnp.int32)
    step = functools.partial(_solver_step, rates_at, settings, chosen, keys, mask_id)
    # One trace whatever S is: a Python loop over steps would compile S copies of the network.
    tokens = jax.lax.fori_loop(0, chosen.num_steps, step, tokens)
    best = jnp.argmax(logits_at(tokens, chosen.end_time)[..., :mask_id], axis=-1)
    return jnp.where(tokens == mask_id, best.astype(tokens.dtype), tokens)
