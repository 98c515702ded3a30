"""The signal that a generator learns from: teacher against auxiliary, at every masked token.

Axes: B batch, L tokens, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dimo_jax.method.dimo import divergences
from dimo_jax.method.dimo.settings import DistillSettings
from dimo_jax.method.masked import guidance
from dimo_jax.method.masked.denoise import Apply


def teacher_logits(
    apply: Apply,
    params: Any,
    x_t: Int[Array, "B L"],
    mask_ratio: Float[Array, "B"],
    condition: Any,
    null_condition: Any,
    settings: DistillSettings,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B L V"]:
    """Guided and shaped logits of the teacher on x_t.

    With guidance both branches run as one batch of 2B; at s = 1 the unconditional one is not run.

    Args:
        apply: the teacher's network.
        params: its parameters.
        x_t: [B, L] re-masked tokens.
        mask_ratio: [B] for adaptive guidance.
        condition: leading axis B.
        null_condition: likewise.
        settings: guidance, temperature, truncation.
        dropout_key: None for no dropout.

    Returns:
        [B, L, V] float32.
    """
    if settings.guidance == 1.0:
        logits = apply(params, x_t, condition, dropout_key=dropout_key)
    else:
        branches = guidance.both_branches(
            apply, params, x_t, condition, null_condition, dropout_key=dropout_key
        )
        scale = settings.guidance
        if settings.adaptive_guidance:
            scale = guidance.adaptive_scale(settings.guidance, mask_ratio)
        logits = guidance.guided(*branches, scale)
    return guidance.shape_logits(
        logits.astype(jnp.float32),
        settings.teacher_temperature,
        settings.teacher_top_k,
        settings.teacher_top_p,
        settings.teacher_lowered_by,
    )


@jax.named_scope("divergence")
def token_gradient(
    teacher: Float[Array, "B L V"],
    auxiliary: Float[Array, "B L V"],
    generator: Float[Array, "B L V"],
    weights: Float[Array, "B L"],
    settings: DistillSettings,
) -> Float[Array, "B L V"]:
    """Return w(t) grad D(teacher || auxiliary) where masked, else 0: the cotangent of z_theta.

    Args:
        teacher: [B, L, V] logits, shaped already.
        auxiliary: [B, L, V] raw logits.
        generator: [B, L, V] raw logits z_theta(x_init).
        weights: [B, L], 0 where a token is not masked; losses.token_weights of the whole batch.
        settings: divergence, Jacobian, weighting.

    Returns:
        [B, L, V] float32. As in the released code the gradient is taken in logits / temperature and
        applied to the generator's raw logits; at temperature 1 there is no difference.

    Source: Di[M]O equation 7; weighting "paper": its appendix C.
    """
    own = generator if settings.jacobian == "generator" else None
    gradient = divergences.logit_gradient(
        settings.divergence, teacher, auxiliary / settings.aux_temperature, own
    )
    masked = weights > 0
    if settings.weighting == "paper":
        probs = jax.nn.softmax(generator / settings.generator.temperature)
        distance = jnp.abs(probs - jax.nn.softmax(teacher)).mean((1, 2))
        weights = weights / jnp.maximum(distance, 1e-5)[:, None]
    # where, not a product: a masked-out position must not spread a NaN.
    return jnp.where(masked[..., None], weights[..., None] * gradient, 0.0)


@jax.named_scope("divergence")
def sample_metrics(
    generator: Float[Array, "B L V"],
    teacher: Float[Array, "B L V"],
    auxiliary: Float[Array, "B L V"],
    weights: Float[Array, "B L"],
    settings: DistillSettings,
) -> dict[str, Float[Array, "B"]]:
    """Return what tells collapse (entropy to 0, every token near one-hot) from divergence.

    Args:
        generator: [B, L, V] raw logits.
        teacher: [B, L, V] logits, shaped already.
        auxiliary: [B, L, V] raw logits.
        weights: [B, L] of the divergence, see losses.token_weights; they need not sum to 1 here.
        settings: divergence and the auxiliary's temperature.

    Returns:
        {name: [B]}, of which the divergence is to be summed over examples, the rest averaged.
    """
    probs = jax.nn.softmax(generator)
    choices = (probs > 1e-3).sum(-1)
    entropy = -(probs * jax.nn.log_softmax(generator)).sum(-1)
    distance = divergences.value(settings.divergence, teacher, auxiliary / settings.aux_temperature)
    return {
        "divergence": (weights * distance).sum(1),
        "generator_entropy": entropy.mean(1),
        "generator_choices": choices.mean(1),
        "generator_one_hot": (choices == 1).mean(1),
    }
