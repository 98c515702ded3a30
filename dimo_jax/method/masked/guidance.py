"""Classifier-free guidance, temperature, truncation of logits, and dropping of conditions.

Axes: B batch, L tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

Condition = Any  # a pytree of arrays with a leading batch axis


def both_branches(
    apply: Callable[..., Array],
    params: Any,
    tokens: Int[Array, "B L"],
    condition: Any,
    null_condition: Any,
    **options: Any,
) -> tuple[Float[Array, "B L V"], Float[Array, "B L V"]]:
    """Logits with the condition and without it, by one call of twice the batch.

    Args:
        apply: the network.
        params: its parameters.
        tokens: the same for both.
        condition: pytree with leading axis B.
        null_condition: the same structure and shapes.
        **options: of `apply`; a dropout key gives the two branches different masks, as in the
            released code.

    Returns:
        (conditional, unconditional), the first two arguments of `guided`.
    """

    # Side by side for each example, not one half after the other: where the batch is spread over
    # devices, both branches of an example then lie on the device that has the example.
    def pair(a: Array, b: Array) -> Array:
        return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])

    both = jax.tree.map(pair, condition, null_condition)
    logits = apply(params, pair(tokens, tokens), both, **options)
    pairs = logits.reshape(-1, 2, *logits.shape[1:])
    return pairs[:, 0], pairs[:, 1]


def guided(
    conditional: Float[Array, "B L V"],
    unconditional: Float[Array, "B L V"],
    scale: Float[Array, "B"] | Float[Array, ""] | float,
) -> Float[Array, "B L V"]:
    """Guided logits u + s (c - u): s = 1 is the conditional model, s = 0 the unconditional one.

    Source: Di[M]O section 5; valeoai's (1 + w) c - w u is s = 1 + w.
    """
    scale = jnp.broadcast_to(jnp.asarray(scale, conditional.dtype), conditional.shape[:1])
    return unconditional + scale[:, None, None] * (conditional - unconditional)


def guided_logits(
    apply: Callable[..., Array],
    params: Any,
    tokens: Int[Array, "B L"],
    condition: Any,
    null_condition: Any,
    scale: Float[Array, "B"] | Float[Array, ""] | float,
    guide: Callable[..., Array] | None = None,
) -> Float[Array, "B L V"]:
    """Guided logits of a network, by one call.

    Args:
        apply: the network.
        params: its parameters.
        tokens: [B, L].
        condition: pytree with leading axis B.
        null_condition: the same structure and shapes; None: there is no guidance, whatever the
            scale.
        scale: of all or of each.
        guide: as `apply`, for the branch without the condition alone, which then takes a call of
            its own; None: it is the same network's.
    """
    if null_condition is None:
        return apply(params, tokens, condition)
    if guide is not None:
        conditional = apply(params, tokens, condition)
        return guided(conditional, guide(params, tokens, null_condition), scale)
    branches = both_branches(apply, params, tokens, condition, null_condition)
    return guided(*branches, scale)


def adaptive_scale(scale: float, mask_ratio: Float[Array, "B"]) -> Float[Array, "B"]:
    """1 + (s - 1) m: no guidance when little is masked, all of it when everything is.

    Source: Di[M]O appendix D.12 (adaptive_cfg).
    """
    return 1.0 + (scale - 1.0) * mask_ratio


def filter_top_k(
    logits: Float[Array, "*N V"], k: int, lowered_by: float = jnp.inf
) -> Float[Array, "*N V"]:
    """Keep the k largest logits and lower the others; all that equal the k-th are kept.

    Args:
        logits: [..., V].
        k: how many to keep; 0 or at least V keeps all.
        lowered_by: what is taken from the others. Infinity excludes them, which is right for
            sampling; as a distillation target take a constant such as 2, since an infinite
            log-ratio makes gradients explode (D-MMD, arXiv 2603.20155).

    Returns:
        [..., V].
    """
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    threshold = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits >= threshold, logits, logits - lowered_by)


def filter_top_p(
    logits: Float[Array, "*N V"], p: float, lowered_by: float = jnp.inf
) -> Float[Array, "*N V"]:
    """Keep the smallest set of most probable tokens whose mass reaches p; lower the others.

    Args:
        logits: [..., V].
        p: in (0, 1]; 1 keeps all.
        lowered_by: as in filter_top_k.

    Returns:
        [..., V]; the most probable token is always kept.
    """
    if p >= 1.0:
        return logits
    descending = -jnp.sort(-logits, axis=-1)
    probs = jax.nn.softmax(descending, axis=-1)
    mass_before = jnp.cumsum(probs, axis=-1) - probs
    last = jnp.maximum(1, jnp.sum(mass_before < p, axis=-1, keepdims=True)) - 1
    threshold = jnp.take_along_axis(descending, last, axis=-1)
    return jnp.where(logits >= threshold, logits, logits - lowered_by)


def shape_logits(
    logits: Float[Array, "*N V"],
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    lowered_by: float = jnp.inf,
) -> Float[Array, "*N V"]:
    """Temperature first (it divides), then top-k, then top-p.

    Args:
        logits: [..., V].
        temperature: above 0.
        top_k: 0 for all.
        top_p: 1 for all.
        lowered_by: as in filter_top_k.

    Returns:
        [..., V].
    """
    logits = filter_top_k(logits / temperature, top_k, lowered_by)
    return filter_top_p(logits, top_p, lowered_by)


def drop_condition(
    keys: Key[Array, "B"], condition: Condition, null_condition: Condition, rate: float
) -> Condition:
    """Replace an example's condition by the null one with probability `rate`.

    Args:
        keys: [B].
        condition: pytree with leading axis B.
        null_condition: the same structure and shapes.
        rate: 0 keeps all.

    Returns:
        The condition to train on.
    """
    if rate <= 0.0:
        return condition
    drop = jax.vmap(jax.random.uniform)(keys) < rate

    def choose(c: Array, null: Array) -> Array:
        return jnp.where(drop.reshape((-1,) + (1,) * (c.ndim - 1)), null, c)

    return jax.tree.map(choose, condition, null_condition)
