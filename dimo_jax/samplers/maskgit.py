"""MaskGit confidence decoding: a teacher's way from an all-[MASK] grid to an image in S steps.

Axes: B batch, L tokens, V vocabulary, S steps, N images.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dimo_jax.method.masked import guidance
from dimo_jax.method.masked.masking import most_confident
from dimo_jax.models import Network
from dimo_jax.samplers import ranges

# Share of the tokens written at r, where r runs from 1 to 0. Not method.schedules: those are mask
# ratios of training, these weights of the steps ("root" and the sense of r are only here).
UNMASK_SCHEDULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "root": lambda r: 1 - np.sqrt(r),
    "linear": lambda r: 1 - r,
    "square": lambda r: 1 - r**2,
    "cosine": lambda r: np.cos(0.5 * np.pi * r),
    "arccos": lambda r: np.arccos(r) / (0.5 * np.pi),
}
COUNTS = ("weights", "differences")
RANDOMIZE = ("linear", "warm_up", "random", "none")
GUIDANCE_SCHEDULES = ("linear", "constant")


@dataclasses.dataclass(frozen=True)
class MaskGitSettings:
    """How a grid is decoded.

    Attributes:
        num_steps: S. More steps than tokens stop once every token is written.
        schedule: how many tokens each step writes, a name in UNMASK_SCHEDULES.
        randomize: what decides the order besides the confidence: "linear" adds Gumbel noise that
            falls to 0 linearly, "warm_up" takes a random order in the first two steps, "random" in
            all of them, "none" the confidence alone.
        choice_temperature: the Gumbel noise's initial scale under "linear".
        temperature: divides the logits.
        guidance: the final scale s in u + s (c - u); s = 1 + w in MaskGit's own terms.
        guidance_schedule: "linear" grows from 1 at the first step to s at the last; "constant".
        top_k: 0 for all.
        top_p: 1 for all.
        counts: what the schedule is of, see `unmask_counts`.

    Raises:
        InputError: on a value outside its range.
    """

    num_steps: int
    schedule: str = "arccos"
    randomize: str = "linear"
    choice_temperature: float = 4.5
    temperature: float = 1.0
    guidance: float = 1.0
    guidance_schedule: str = "linear"
    top_k: int = 0
    top_p: float = 1.0
    counts: str = "weights"

    def __post_init__(self):
        """Check the values, since they come from flags and files."""
        ranges.check(
            vars(self),
            schedule=UNMASK_SCHEDULES,
            counts=COUNTS,
            randomize=RANDOMIZE,
            guidance_schedule=GUIDANCE_SCHEDULES,
        )


def unmask_counts(
    schedule: str, num_steps: int, num_tokens: int, counts: str = "weights"
) -> tuple[int, ...]:
    """Return how many tokens each step writes.

    Args:
        schedule: a name in UNMASK_SCHEDULES.
        num_steps: S.
        num_tokens: L.
        counts: "weights": a step's share of the tokens is in proportion to the schedule;
            "differences": the schedule is the share that is masked before each step.

    Returns:
        At most S counts, each at least 1, that add up to L.

    Source: MaskGit-PyTorch v1.0 `adap_sche`, which divides by zero at S = 1; sony/di4c's, which
    takes differences.
    """
    if num_steps == 1:
        return (num_tokens,)
    written = UNMASK_SCHEDULES[schedule]
    if counts == "weights":
        weights = written(np.linspace(1, 0, num_steps))
        found = np.round(weights / weights.sum() * num_tokens)
    else:
        found = -np.diff(np.round(num_tokens * written(np.linspace(0, 1, num_steps + 1))))
    # The last step takes what rounding left; where earlier steps took all, decoding ends early.
    ends = np.minimum(np.cumsum(np.maximum(1, found).astype(int)), num_tokens)
    ends[-1] = num_tokens
    return tuple(int(c) for c in np.diff(ends, prepend=0) if c)


# What the plan says, with what stands in its place where the rest is compiled in.
PLANNED = {
    "num_steps": 1,
    "schedule": "arccos",
    "choice_temperature": 0.0,
    "guidance_schedule": "constant",
    "counts": "weights",
}


class Plan(flax.struct.PyTreeNode):
    """The numbers of each step, and how many steps there are: traced, so that no other S compiles.

    Attributes:
        num_steps: scalar, at most L.
        counts: [L] tokens to write; 0 from num_steps on, as in the next two.
        scales: [L] guidance.
        noise: [L] scale of the Gumbel noise on the confidence.
    """

    num_steps: Int[Array | np.ndarray, ""]
    counts: Int[Array | np.ndarray, "L"]
    scales: Float[Array | np.ndarray, "L"]
    noise: Float[Array | np.ndarray, "L"]


def make_plan(settings: MaskGitSettings, num_tokens: int) -> Plan:
    """Return what the settings say of each step.

    Args:
        settings: of the decoding.
        num_tokens: L.

    Returns:
        NumPy arrays.
    """
    counts = unmask_counts(settings.schedule, settings.num_steps, num_tokens, settings.counts)
    last = settings.num_steps - 1
    progress = np.arange(len(counts)) / last if last else np.ones(1)
    ramp = progress if settings.guidance_schedule == "linear" else np.ones(len(counts))

    def padded(values: Any, dtype: Any) -> np.ndarray:
        return np.pad(np.asarray(values, dtype), (0, num_tokens - len(counts)))

    return Plan(
        num_steps=np.asarray(len(counts), np.int32),
        counts=padded(counts, np.int32),
        scales=padded(1 + (settings.guidance - 1) * ramp, np.float32),
        noise=padded(settings.choice_temperature * (1 - progress), np.float32),
    )


def _keys_of(keys: Key[Array, "B"], index: Int[Array, ""] | int) -> Key[Array, "B 2"]:
    """Return the keys of a step's tokens and of its order."""
    # fold_in and then one split: tests/samplers/test_maskgit.py draws the same numbers in NumPy.
    return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, index)))(keys)


def _tokens(
    keys: Key[Array, "B"], index: Int[Array, ""] | int, logits: Float[Array, "B L V"]
) -> Int[Array, "B L"]:
    """Draw every position on its own."""
    first = _keys_of(keys, index)[:, 0]
    gumbel = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(first)
    return jnp.argmax(logits + gumbel, axis=-1).astype(jnp.int32)


def _order_noise(
    keys: Key[Array, "B"], index: Int[Array, ""] | int, shape: tuple[int, ...]
) -> Float[Array, "B L"]:
    """Draw the noise on the confidence."""
    second = _keys_of(keys, index)[:, 1]
    return jax.vmap(lambda key: jax.random.gumbel(key, shape))(second)


def _mixture(keys: Key[Array, "B"], index: Int[Array, ""] | int) -> Float[Array, "B"]:
    """Draw the number that chooses a step's product of the mixture."""
    return jax.vmap(
        lambda key: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, index), 2))
    )(keys)


def _decode_step(
    logits_at: Callable,
    settings: MaskGitSettings,
    plan: Plan,
    keys: Key[Array, "B"],
    index: Int[Array, ""] | int,
    grid: tuple[Int[Array, "B L"], Bool[Array, "B L"]],
) -> tuple[Int[Array, "B L"], Bool[Array, "B L"]]:
    """Predict every position, then write the most confident of the masked ones."""
    tokens, mask = grid
    logits = guidance.shape_logits(
        logits_at(tokens, index), settings.temperature, settings.top_k, settings.top_p
    )
    drawn = _tokens(keys, index, logits)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    # log p sorts like p, and does not tie where p rounds to 1 or to 0.
    confidence = jnp.take_along_axis(log_probs, drawn[..., None], axis=-1)[..., 0]
    length = confidence.shape[1:]
    if settings.randomize == "linear":
        confidence = confidence + plan.noise[index] * _order_noise(keys, index, length)
    elif settings.randomize in ("warm_up", "random"):
        second = _keys_of(keys, index)[:, 1]
        uniform = jax.vmap(lambda key: jax.random.uniform(key, length))(second)
        shuffled = (index < 2) if settings.randomize == "warm_up" else True
        confidence = jnp.where(shuffled, uniform, confidence)
    write = most_confident(confidence, mask, plan.counts[index])
    return jnp.where(write, drawn, tokens), mask & ~write


def decode(
    network: Network,
    params: Any,
    keys: Key[Array, "B"],
    condition: Any,
    null_condition: Any,
    settings: MaskGitSettings,
    plan: Plan | None = None,
) -> Int[Array, "B L"]:
    """Tokens in `settings.num_steps` network calls, each of 2 B grids where there is guidance.

    At step i an image's key gives split(fold_in(key, i)): the first draws gumbel [L, V] for its
    tokens (argmax of logits + noise), the second gumbel or uniform [L] for the order. A drawn
    token that is written stays, also where it is the id of [MASK]. At S = 1, where the original
    divides by zero, the only step counts as the last: full guidance, no noise.

    A network with a mixture is given a uniform number in each step, anew for each image and the
    same for both branches of its guidance, from fold_in(fold_in(key, i), 2).

    Args:
        network: its apply, num_tokens and mask_id are used.
        params: its parameters.
        keys: [B], one for each image.
        condition: pytree with leading axis B.
        null_condition: the same structure and shapes; looked at only where guidance is not 1.
        settings: static under jit.
        plan: that of the settings; given, it stands for num_steps, schedule, counts,
            choice_temperature and guidance_schedule, and for all of guidance but whether it is 1.

    Returns:
        [B, L] int32. With a network that predicts [MASK] too, its id may occur; decoding to images
        clamps it.

    Source: MaskGit-PyTorch v1.0 `sample`; the mixture: sony/di4c, Di4C (arXiv 2410.08709).
    """
    chosen: Any = jax.tree.map(jnp.asarray, plan or make_plan(settings, network.num_tokens))
    null = None if settings.guidance == 1 else null_condition

    def logits_at(tokens: Int[Array, "B L"], index: Int[Array, ""] | int) -> Float[Array, "B L V"]:
        given, other = condition, null
        if network.has_mixture:
            mixture = _mixture(keys, index)
            given = {"label": condition, "mixture": mixture}
            if null is not None and network.guide is None:
                other = {"label": null, "mixture": mixture}
        scale = chosen.scales[index]
        return guidance.guided_logits(
            network.apply, params, tokens, given, other, scale, network.guide
        )

    shape = (keys.shape[0], network.num_tokens)
    grid = (jnp.full(shape, network.mask_id, jnp.int32), jnp.ones(shape, bool))
    step = functools.partial(_decode_step, logits_at, settings, chosen, keys)
    # One trace whatever S is: a Python loop over steps would compile S copies of the network.
    return jax.lax.fori_loop(0, chosen.num_steps, step, grid)[0]
