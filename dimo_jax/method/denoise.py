"""Masked prediction: the update that the teacher's training and the auxiliary's share.

Axes: B batch, L tokens, V vocabulary.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from dimo_jax.method import guidance, losses, masking
from dimo_jax.method.generate import Apply


@dataclasses.dataclass(frozen=True)
class DenoiseSettings:
    """One masked-prediction objective.

    Attributes:
        mask: the forward process.
        mask_id: the id of [MASK].
        label_smoothing: 0.1 for the released MaskGit auxiliary, 0 in the paper.
        condition_drop: probability that a condition is replaced by the null one.
        positions: "masked", or "all" as the MaskGit-PyTorch teacher was trained.
        reduction: a name in losses.REDUCTIONS.
        soft_weight: share of soft targets (the auxiliary's alpha).
    """

    mask: masking.MaskSettings
    mask_id: int
    label_smoothing: float
    condition_drop: float
    positions: str
    reduction: str
    soft_weight: float = 0.0


def denoise_loss(
    logits: Float[Array, "B L V"],
    targets: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    settings: DenoiseSettings,
    soft_targets: Float[Array, "B L V"] | None = None,
) -> Float[Array, ""]:
    """Cross-entropy reduced over the positions that count. Source: Di[M]O equations 3 and 19."""
    counted = jnp.ones_like(mask) if settings.positions == "all" else mask
    weights = losses.token_weights(counted, settings.reduction)
    values = losses.token_cross_entropy(
        logits, targets, settings.label_smoothing, settings.soft_weight, soft_targets
    )
    return (weights * values).sum()


def denoise_gradient(
    apply: Apply,
    params: Any,
    keys: Key[Array, "B"],
    tokens: Int[Array, "B L"],
    condition: Any,
    null_condition: Any,
    settings: DenoiseSettings,
    dropout_key: Key[Array, ""] | None = None,
    soft_targets: Float[Array, "B L V"] | None = None,
) -> tuple[Float[Array, ""], Any]:
    """Masks the tokens at a random time and differentiates the loss of predicting them.

    Args:
        apply: the network.
        params: what is differentiated.
        keys: [B], for the masks and the dropped conditions.
        tokens: [B, L] x_0.
        condition: leading axis B.
        null_condition: the same structure.
        settings: the objective.
        dropout_key: None for no dropout.
        soft_targets: [B, L, V] probabilities where settings.soft_weight > 0.

    Returns:
        The loss, and its gradient in `params`.
    """
    pairs = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    mask, _ = masking.sample_mask(pairs[:, 0], tokens.shape[1], settings.mask)
    x_t = masking.apply_mask(tokens, mask, settings.mask_id)
    seen = guidance.drop_condition(pairs[:, 1], condition, null_condition, settings.condition_drop)

    def loss(p: Any) -> Float[Array, ""]:
        logits = apply(p, x_t, seen, dropout_key=dropout_key)
        return denoise_loss(logits, tokens, mask, settings, soft_targets)

    return jax.value_and_grad(loss)(params)


def descend(
    optimizer: optax.GradientTransformation, gradient: Any, opt_state: Any, params: Any
) -> tuple[Any, Any]:
    """One optimizer update: (new params, new optimizer state)."""
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state
