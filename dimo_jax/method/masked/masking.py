"""The forward process: which tokens are masked. `mask` is True where a token IS masked, always.

Axes: B batch, L tokens. Every random function takes one key for each example, so an example's
numbers depend on its key alone and not on the batch or the device it stands in.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dimo_jax.method.masked import schedules


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """How tokens are masked.

    Attributes:
        schedule: a name in schedules.MASK_SCHEDULES.
        kind: "exact" masks round(L * ratio) tokens, at least one (released code); "bernoulli" masks
            each with probability `ratio` (paper, equation 1).
        min_ratio: lower clamp limit of the ratio.
        max_ratio: upper clamp limit of the ratio.
    """

    schedule: str
    kind: str
    min_ratio: float
    max_ratio: float


def random_subset(
    keys: Key[Array, "B"],
    count: Int[Array, "B"],
    num_tokens: int,
    among: Bool[Array, "B L"] | None = None,
) -> Bool[Array, "B L"]:
    """Exactly `count` of `num_tokens` positions, uniformly among all such subsets.

    Args:
        keys: [B].
        count: [B], 0 .. num_tokens; at most as many as `among` has.
        num_tokens: L.
        among: the positions to choose from; None: all.

    Returns:
        [B, L], True at the chosen positions.
    """
    ranks = jax.vmap(lambda key: jax.random.permutation(key, num_tokens))(keys)
    if among is not None:  # the others behind them
        ranks = jnp.argsort(jnp.argsort(jnp.where(among, ranks, ranks + num_tokens)))
    return ranks < count[:, None]


def exact_count_mask(
    keys: Key[Array, "B"],
    ratio: Float[Array, "B"],
    num_tokens: int,
    among: Bool[Array, "B L"] | None = None,
) -> Bool[Array, "B L"]:
    """Masks that share of the L tokens, or of those in `among`: the nearest count, at least one.

    Source: released code, get_mask_code.
    """
    size = num_tokens if among is None else among.sum(1)
    count = jnp.maximum(1, jnp.round(size * ratio).astype(jnp.int32))
    return random_subset(keys, count, num_tokens, among)


def bernoulli_mask(
    keys: Key[Array, "B"],
    ratio: Float[Array, "B"],
    num_tokens: int,
    among: Bool[Array, "B L"] | None = None,
) -> Bool[Array, "B L"]:
    """Masks each token, or each of `among`, with probability `ratio`; none may be masked.

    Source: Di[M]O equation 1.
    """
    u = jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(keys)
    mask = u < ratio[:, None]
    return mask if among is None else mask & among


MASK_KINDS = {"exact": exact_count_mask, "bernoulli": bernoulli_mask}


def sample_mask(
    keys: Key[Array, "B"],
    num_tokens: int,
    settings: MaskSettings,
    among: Bool[Array, "B L"] | None = None,
) -> tuple[Bool[Array, "B L"], Float[Array, "B"]]:
    """Return a mask for each example at a random time.

    Args:
        keys: [B].
        num_tokens: L.
        settings: schedule, kind and limits.
        among: the positions that may be masked, of which the ratio is; None: all.

    Returns:
        mask [B, L], and the ratio [B] it was drawn with.
    """
    pairs = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    u = jax.vmap(jax.random.uniform)(pairs[:, 0])
    ratio = schedules.mask_ratio(u, settings.schedule, settings.min_ratio, settings.max_ratio)
    return MASK_KINDS[settings.kind](pairs[:, 1], ratio, num_tokens, among), ratio


def apply_mask(
    tokens: Int[Array, "B L"], mask: Bool[Array, "B L"], mask_id: int
) -> Int[Array, "B L"]:
    """x_t: the tokens with [MASK] where `mask` is True."""
    return jnp.where(mask, mask_id, tokens)


def most_confident(
    confidence: Float[Array, "B L"], mask: Bool[Array, "B L"], count: Int[Array, ""] | int
) -> Bool[Array, "B L"]:
    """Return the `count` masked positions of the greatest confidence, exactly.

    Ties go to the lower index.

    The original compares with the count-th largest value, so ties write more than were asked for.

    Args:
        confidence: [B, L]; finite where masked.
        mask: [B, L]; other positions are never chosen.
        count: may be traced; where fewer are masked, all of them are chosen.

    Returns:
        [B, L].
    """
    order = jnp.argsort(jnp.where(mask, -confidence, jnp.inf), axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1)
    return mask & (rank < count)
