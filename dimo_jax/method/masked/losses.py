"""Masked cross-entropy, and the named ways to reduce over tokens.

Axes: B batch, L tokens, V vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

REDUCTIONS = ("sum", "mean_masked", "mean_batch")


def token_weights(mask: Bool[Array, "B L"], reduction: str) -> Float[Array, "B L"]:
    """Return the weight of every token in a loss; a loss is sum(weights * per-token values).

    Args:
        mask: [B, L], True where a token counts.
        reduction: "sum": over tokens, divided by B (released code, generator); "mean_masked": mean
            over an example's masked tokens, then over examples (paper, equation 5); "mean_batch":
            mean over all masked tokens of the batch (released code, auxiliary).

    Returns:
        [B, L] float32, 0 where `mask` is False.

    Raises:
        ValueError: on another name.
    """
    weight = mask.astype(jnp.float32)
    if reduction == "sum":
        return weight / mask.shape[0]
    if reduction == "mean_masked":
        return weight / (mask.shape[0] * jnp.maximum(weight.sum(1, keepdims=True), 1.0))
    if reduction == "mean_batch":
        return weight / jnp.maximum(weight.sum(), 1.0)
    raise ValueError(f"reduction {reduction!r} is none of {', '.join(REDUCTIONS)}")


def token_cross_entropy(
    logits: Float[Array, "B L V"],
    targets: Int[Array, "B L"],
    label_smoothing: float,
    soft_weight: float = 0.0,
    soft_targets: Float[Array, "B L V"] | None = None,
) -> Float[Array, "B L"]:
    """Cross-entropy of each token, in float32.

    Args:
        logits: [B, L, V].
        targets: [B, L] ids in [0, V).
        label_smoothing: share of the target's mass spread evenly over V, as PyTorch does.
        soft_weight: a in (1 - a) hard + a soft (Di[M]O equation 19).
        soft_targets: [B, L, V] probabilities; needed where a > 0.

    Returns:
        [B, L] float32. The soft part sums over V (equation 19; the released code divides by V
        too, which only rescales a) and leaves out the targets' entropy, a constant.
    """
    log_q = jax.nn.log_softmax(logits.astype(jnp.float32))
    hard = -jnp.take_along_axis(log_q, targets[..., None], axis=-1)[..., 0]
    if label_smoothing:
        hard = (1 - label_smoothing) * hard - label_smoothing * log_q.mean(-1)
    if not soft_weight:
        return hard
    if soft_targets is None:
        raise ValueError(f"soft_weight is {soft_weight}, and there are no soft_targets")
    soft = -(soft_targets * log_q).sum(-1)
    return (1 - soft_weight) * hard + soft_weight * soft
