"""Exponential moving average of parameters, with the released code's warm-up."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def decay_at(step: Int[Array, ""] | int, decay: float, warmup: bool) -> Float[Array, ""]:
    """Return the decay of one update.

    Args:
        step: updates made before this one.
        decay: its final value.
        warmup: whether it starts low: min(decay, (1 + step) / (10 + step)).

    Returns:
        Scalar float32.

    Source: released code, update_ema (diffusers' and ADM's rule).
    """
    if not warmup:
        return jnp.asarray(decay, jnp.float32)
    n = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1.0 + n) / (10.0 + n))


@jax.named_scope("ema")
def update(average: Any, params: Any, decay: Float[Array, ""] | float) -> Any:
    """Return the average moved: a + (1 - decay) (p - a), leaf by leaf.

    Equal leaves stay bit-equal.
    """
    return jax.tree.map(lambda a, p: (a + (1 - decay) * (p - a)).astype(a.dtype), average, params)
