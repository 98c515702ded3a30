"""Schedules: how many tokens are masked at a time u, and how a warm-up grows.

Axes: B batch.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# The truncated normal of the "mage" schedule: mean, deviation, lower and upper end.
_MAGE = (0.55, 0.25, 0.5, 1.0)


def _mage(u: Array) -> Array:
    mean, deviation, low, high = _MAGE
    below = 0.5 * (1 + math.erf((low - mean) / deviation / math.sqrt(2)))
    above = 0.5 * (1 + math.erf((high - mean) / deviation / math.sqrt(2)))
    return mean + deviation * jax.scipy.special.ndtri(below + u * (above - below))


MASK_SCHEDULES: dict[str, Callable[[Array], Array]] = {
    "arccos": lambda u: (2 / jnp.pi) * jnp.arccos(u),
    "cosine": lambda u: jnp.cos(0.5 * jnp.pi * u),
    "linear": lambda u: u,
    "square": lambda u: u**2,
    "mage": _mage,
}


def mask_ratio(
    u: Float[Array, "B"], schedule: str, min_ratio: float = 0.0, max_ratio: float = 1.0
) -> Float[Array, "B"]:
    """Mask ratio at the times u.

    Args:
        u: [B] uniform in [0, 1).
        schedule: a name in MASK_SCHEDULES.
        min_ratio: lower clamp limit.
        max_ratio: upper clamp limit. Meissonic clamps to [0.02, 0.98]; MaskGit does not.

    Returns:
        [B] ratios in [min_ratio, max_ratio].

    Source: Di[M]O appendix C and the released code; "mage" is a truncated normal (mean 0.55,
    deviation 0.25, on [0.5, 1]), here by its inverse distribution function.
    """
    return jnp.clip(MASK_SCHEDULES[schedule](u), min=min_ratio, max=max_ratio)


WARMUPS: dict[str, Callable[[Array, float], Array]] = {
    "fixed": lambda step, steps: jnp.ones_like(step),
    "linear": lambda step, steps: jnp.minimum(1.0, step / steps),
    "exponential": lambda step, steps: 1.0 - jnp.exp(-step / steps),
    "cosine": lambda step, steps: 0.5 - 0.5 * jnp.cos(jnp.pi * jnp.minimum(1.0, step / steps)),
}


def warmup(step: Array, schedule: str, warmup_steps: int) -> Float[Array, ""]:
    """Growth from 0 to 1 over training, e.g. of the embedding noise sigma.

    Args:
        step: scalar, the training step from 0.
        schedule: a name in WARMUPS; "fixed" is 1 from the start.
        warmup_steps: where "linear" and "cosine" arrive at 1; the time constant of "exponential".

    Returns:
        Scalar float32 in [0, 1].

    Source: released code, noise_emb_perturb = fix_x | warmup_{linear,exp,cos}_N.
    """
    return WARMUPS[schedule](jnp.asarray(step, jnp.float32), float(max(warmup_steps, 1)))
