"""Masked prediction: the update that the teacher's training and the auxiliary's share.

Axes: B batch, L tokens, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from dimo_jax.method.masked import guidance, losses, masking

# A network: (params, tokens [B, L], condition, ...) -> logits.
Apply = Callable[..., Float[Array, "B L V"]]


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


class Corruption(flax.struct.PyTreeNode):
    """What a batch of tokens is corrupted with, drawn before the tokens are looked at.

    Attributes:
        mask: [B, L], True where a token is masked.
        weights: [B, L] float32, of every token's loss; they sum over the whole batch, so that a
            part of it has the share it should have.
        condition: leading axis B, partly replaced by the null one.

    The fields are of any type: a batch in parts has one axis more on the way.
    """

    mask: Any
    weights: Any
    condition: Any


def weights_of(
    mask: Bool[Array, "B L"],
    settings: DenoiseSettings,
    examples: Bool[Array, "B"] | None = None,
) -> Float[Array, "B L"]:
    """Return the weight of every token in the loss of a whole batch with this mask.

    Args:
        mask: [B, L], True where a token is masked.
        settings: the objective.
        examples: those that the loss is of; None: all.
    """
    counted = jnp.ones_like(mask) if settings.positions == "all" else mask
    if examples is not None:
        counted = counted & examples[:, None]
    return losses.token_weights(counted, settings.reduction)


def corruption(
    keys: Key[Array, "B"],
    num_tokens: int,
    condition: Any,
    null_condition: Any,
    settings: DenoiseSettings,
) -> Corruption:
    """Masks at a random time for every example, and the conditions it is shown with.

    Args:
        keys: [B].
        num_tokens: L.
        condition: leading axis B.
        null_condition: the same structure.
        settings: the objective.
    """
    pairs = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    mask, _ = masking.sample_mask(pairs[:, 0], num_tokens, settings.mask)
    seen = guidance.drop_condition(pairs[:, 1], condition, null_condition, settings.condition_drop)
    return Corruption(mask, weights_of(mask, settings), seen)


@jax.named_scope("loss")
def denoise_loss(
    logits: Float[Array, "B L V"],
    targets: Int[Array, "B L"],
    weights: Float[Array, "B L"],
    settings: DenoiseSettings,
    soft_targets: Float[Array, "B L V"] | None = None,
) -> Float[Array, ""]:
    """Cross-entropy summed with the given weights. Source: Di[M]O equations 3 and 19."""
    values = losses.token_cross_entropy(
        logits, targets, settings.label_smoothing, settings.soft_weight, soft_targets
    )
    return (weights * values).sum()


def loss_by_ratio(
    logits: Float[Array, "B L V"],
    targets: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    settings: DenoiseSettings,
    num_bins: int,
) -> Float[Array, "2 N"]:
    """Sum cross-entropy over masked tokens by the share of them in their example.

    Args:
        logits: [B, L, V].
        targets: [B, L] ids.
        mask: [B, L], True where a token is masked.
        settings: the objective, for its label smoothing.
        num_bins: N, of equal width from 0 to 1; a share on a border is in the upper one.

    Returns:
        [2, N] float32, sums over the batch: of the cross-entropy, and of the masked tokens.
    """
    values = losses.token_cross_entropy(logits, targets, settings.label_smoothing)
    where = jnp.minimum(mask.mean(1) * num_bins, num_bins - 1).astype(jnp.int32)
    sums = jnp.stack([jnp.where(mask, values, 0.0).sum(1), mask.sum(1).astype(jnp.float32)])
    return sums @ jax.nn.one_hot(where, num_bins)


def denoise_gradient(
    apply: Apply,
    params: Any,
    tokens: Int[Array, "B L"],
    corrupted: Corruption,
    settings: DenoiseSettings,
    dropout_key: Key[Array, ""] | None = None,
    soft_targets: Float[Array, "B L V"] | None = None,
    loss_bins: int = 0,
) -> tuple[Float[Array, ""], Any, Float[Array, "2 N"] | None]:
    """Differentiate the loss of predicting masked tokens.

    Args:
        apply: the network.
        params: what is differentiated.
        tokens: [B, L] x_0, a whole batch or a part of it.
        corrupted: of these examples.
        settings: the objective.
        dropout_key: None for no dropout.
        soft_targets: [B, L, V] probabilities where settings.soft_weight > 0.
        loss_bins: N; 0: none.

    Returns:
        The loss, its gradient in `params`, and `loss_by_ratio` where there are bins.
    """
    x_t = masking.apply_mask(tokens, corrupted.mask, settings.mask_id)

    def loss(p: Any) -> tuple[Float[Array, ""], Any]:
        logits = apply(p, x_t, corrupted.condition, dropout_key=dropout_key)
        by_ratio = None
        if loss_bins:
            by_ratio = loss_by_ratio(logits, tokens, corrupted.mask, settings, loss_bins)
        return denoise_loss(logits, tokens, corrupted.weights, settings, soft_targets), by_ratio

    (value, by_ratio), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return value, gradient, by_ratio


@jax.named_scope("optimizer")
def descend(
    optimizer: optax.GradientTransformation, gradient: Any, opt_state: Any, params: Any
) -> tuple[Any, Any, dict[str, Array]]:
    """Do one optimizer update, left out where the gradient is not finite.

    Returns:
        New params, new optimizer state (both as they were where the update is left out), and the
        gradient's "norm" and whether it was "skipped" (1.0 or 0.0).
    """
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(norm)
    updates, new_state = optimizer.update(gradient, opt_state, params)
    keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
    new_params, new_state = keep(
        (optax.apply_updates(params, updates), new_state), (params, opt_state)
    )
    return new_params, new_state, {"norm": norm, "skipped": 1.0 - finite}
