"""Halton decoding: cells are written in a fixed, evenly spread order, whatever their confidence.

Axes: B batch, L tokens, V vocabulary, S steps, N images.
"""

import dataclasses
import math
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
class HaltonSettings:
    """How a grid is decoded.

    Attributes:
        num_steps: S. More steps than tokens stop once every token is written.
        guidance: the scale s in u + s (c - u), the same in every step; s = 1 + w in the original's
            terms, whose evaluations take w 0.5 to 1.5 and whose default is 4.
        inverse_temperature_first: multiplies the logits in the first step, before the power (the
            original's sm_temp_min).
        inverse_temperature_last: in the last step (sm_temp_max); linear in between.
        inverse_temperature_power: what these are raised to.
        warmup_steps: the first steps, in which the inverse temperature is halved.
        top_k: 0 for all.
        randomize: start each image at its own place of the order, which goes round.

    Raises:
        InputError: on a value outside its range.
    """

    num_steps: int
    guidance: float = 1.0
    inverse_temperature_first: float = 1.0
    inverse_temperature_last: float = 1.0
    inverse_temperature_power: float = 1.0
    warmup_steps: int = 0
    top_k: int = 0
    randomize: bool = False

    def __post_init__(self):
        """Check the values, since they come from flags and files."""
        ranges.check(vars(self))


def _radical_inverse(index: Int[np.ndarray, "P"], base: int) -> tuple[Int[np.ndarray, "P"], int]:
    """Return each index with its digits mirrored at the point, as numerators of one denominator."""
    numerator, denominator = np.zeros_like(index), 1
    while index.any():
        numerator = numerator * base + index % base
        index, denominator = index // base, denominator * base
    return numerator, denominator


def cell_order(num_tokens: int) -> Int[np.ndarray, "L"]:
    """Return the cells of a square grid as the Halton sequence first comes to them.

    Args:
        num_tokens: L, a square number.

    Returns:
        [L] row-major indices; rows are in base 2, columns in base 3, from the sequence's index 1.

    Raises:
        InputError: if the grid is not square.

    Source: Besnier et al. 2025 (arXiv 2503.17076). The original takes 10,000 points, which reach
    every cell of grids up to 49 by 49; here as many as reach every cell. Integers are exact.
    """
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise InputError(f"num_tokens is {num_tokens}; the Halton order needs a square grid")
    num_points, order = 16 * num_tokens, np.zeros(0, int)
    while len(order) < num_tokens:
        index = np.arange(1, num_points + 1)
        (row, rows), (column, columns) = _radical_inverse(index, 2), _radical_inverse(index, 3)
        cells = (row * side // rows) * side + column * side // columns
        order = cells[np.sort(np.unique(cells, return_index=True)[1])]
        num_points *= 2
    return order


def reveal_counts(num_steps: int, num_tokens: int) -> tuple[int, ...]:
    """Return how many cells each step writes.

    Args:
        num_steps: S.
        num_tokens: L.

    Returns:
        At most S counts, each at least 1, that add up to L.

    Source: Halton-MaskGIT, Sampler/halton_sampler.py.
    """
    index = np.arange(1, num_steps + 1)
    # In float32 as the original: in float64 a third of 576 cells is 192 and not 191.
    ratio = (index / num_steps).astype(np.float32)
    share = 1 - np.arccos(ratio) / np.float32(0.5 * math.pi)
    ends = np.maximum(index, (share * np.float32(num_tokens)).astype(int))
    counts = np.diff(np.minimum(ends, num_tokens), prepend=0)
    return tuple(int(c) for c in counts if c)


# What the plan says, with what stands in its place where the rest is compiled in.
PLANNED = {
    "num_steps": 1,
    "inverse_temperature_first": 1.0,
    "inverse_temperature_last": 1.0,
    "inverse_temperature_power": 1.0,
    "warmup_steps": 0,
}


class Plan(flax.struct.PyTreeNode):
    """The numbers of each step, and how many steps there are: traced, so that no other S compiles.

    Attributes:
        num_steps: scalar, at most L.
        bounds: [M = L + 1]; step i writes the places bounds[i] to bounds[i + 1] of the order.
        inverse_temperature: [L]; 0 from num_steps on.
        guidance: scalar scale.
    """

    num_steps: Int[Array | np.ndarray, ""]
    bounds: Int[Array | np.ndarray, "M"]
    inverse_temperature: Float[Array | np.ndarray, "L"]
    guidance: Float[Array | np.ndarray, ""]


def make_plan(settings: HaltonSettings, num_tokens: int) -> Plan:
    """Return what the settings say of each step.

    Args:
        settings: of the decoding.
        num_tokens: L.

    Returns:
        NumPy arrays.
    """
    counts = reveal_counts(settings.num_steps, num_tokens)
    first, last = settings.inverse_temperature_first, settings.inverse_temperature_last
    # Over all S, also where the grid is full before: so the original.
    scale = np.linspace(first, last, settings.num_steps) ** settings.inverse_temperature_power
    scale[: settings.warmup_steps] *= 0.5
    rest = num_tokens - len(counts)
    return Plan(
        num_steps=np.asarray(len(counts), np.int32),
        bounds=np.pad(np.cumsum((0, *counts), dtype=np.int32), (0, rest), mode="edge"),
        inverse_temperature=np.pad(scale[: len(counts)].astype(np.float32), (0, rest)),
        guidance=np.asarray(settings.guidance, np.float32),
    )


def decode(
    network: Network,
    params: Any,
    keys: Key[Array, "B"],
    condition: Any,
    null_condition: Any,
    settings: HaltonSettings,
    plan: Plan | None = None,
) -> Int[Array, "B L"]:
    """Tokens in `settings.num_steps` network calls, each of 2 B grids where there is guidance.

    An image's key is split in two: the first half draws where in the order it starts (randint up
    to L, with `randomize`), the second folded with i the gumbel [L, V] of step i (argmax of
    logits + noise). A drawn token that is written stays, also where it is the id of [MASK].

    Args:
        network: its apply, num_tokens and mask_id are used.
        params: its parameters.
        keys: [B], one for each image.
        condition: pytree with leading axis B.
        null_condition: the same structure and shapes; looked at only where guidance is not 1.
        settings: static under jit.
        plan: that of the settings; given, it stands for num_steps, warmup_steps and the inverse
            temperatures, and for all of guidance but whether it is 1.

    Returns:
        [B, L] int32 below mask_id: what is still [MASK] at the end becomes the last code.

    Source: Halton-MaskGIT, Sampler/halton_sampler.py, as of July 2025. Before, each step drew all
    cells written so far anew.
    """
    num_tokens, mask_id = network.num_tokens, network.mask_id
    chosen: Any = jax.tree.map(jnp.asarray, plan or make_plan(settings, num_tokens))
    null = None if settings.guidance == 1 else null_condition
    pairs = jax.vmap(jax.random.split)(keys)
    start_keys, draw_keys = pairs[:, 0], pairs[:, 1]
    place = jnp.asarray(np.argsort(cell_order(num_tokens)), jnp.int32)[None]  # of each cell
    if settings.randomize:
        start = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_tokens))(start_keys)
        place = (place + start[:, None]) % num_tokens

    def logits_at(tokens: Int[Array, "B L"]) -> Float[Array, "B L V"]:
        scale = chosen.guidance
        return guidance.guided_logits(network.apply, params, tokens, condition, null, scale)

    def step(index: Int[Array, ""] | int, tokens: Int[Array, "B L"]) -> Int[Array, "B L"]:
        logits = chosen.inverse_temperature[index] * logits_at(tokens)
        logits = guidance.filter_top_k(logits, settings.top_k)
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(draw_keys)
        gumbel = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(step_keys)
        drawn = jnp.argmax(logits + gumbel, axis=-1).astype(tokens.dtype)
        write = (chosen.bounds[index] <= place) & (place < chosen.bounds[index + 1])
        return jnp.where(write, drawn, tokens)

    # One trace whatever S is: a Python loop over steps would compile S copies of the network.
    tokens = jnp.full((len(keys), num_tokens), mask_id, jnp.int32)
    return jnp.minimum(jax.lax.fori_loop(0, chosen.num_steps, step, tokens), mask_id - 1)
