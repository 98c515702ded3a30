"""The Di[M]O step: one pure function from (state, teacher, batch) to (state, metrics).

Axes: B batch, L tokens, V vocabulary, K auxiliary updates a step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from dimo_jax.method import denoise, divergences, ema, guidance, losses, masking, schedules
from dimo_jax.method.distill_settings import DistillSettings
from dimo_jax.method.generate import Apply, generator_logits, initial_state, sample_tokens
from dimo_jax.training import rng


class DistillState(flax.struct.PyTreeNode):
    """Everything that a step changes. The frozen teacher is not in it."""

    step: Int[Array, ""]
    generator: Any
    auxiliary: Any
    ema: Any
    generator_opt: Any
    aux_opt: Any


class DistillBatch(flax.struct.PyTreeNode):
    """What one step is asked for; no images.

    Attributes:
        seed: scalar.
        index: [B] global example indices within the step.
        condition: the generator's, leading axis B.
        aux_condition: for fresh samples, leading axes K, B.
        null_condition: the teacher's unconditional branch, leading axis B.
    """

    seed: Int[Array, ""]
    index: Int[Array, "B"]
    condition: Any
    aux_condition: Any
    null_condition: Any


def create_state(
    params: Any,
    generator_optimizer: optax.GradientTransformation,
    aux_optimizer: optax.GradientTransformation,
) -> DistillState:
    """Generator, auxiliary and EMA as copies of `params`, the teacher's where it has the same tree.

    Call it under jit: the copies must not share buffers, or the state cannot be donated.
    """
    generator, auxiliary, averaged = (jax.tree.map(jnp.copy, params) for _ in range(3))
    return DistillState(
        step=jnp.zeros((), jnp.int32),
        generator=generator,
        auxiliary=auxiliary,
        ema=averaged,
        generator_opt=generator_optimizer.init(generator),
        aux_opt=aux_optimizer.init(auxiliary),
    )


class _Streams:
    """The random streams of one step, by name."""

    def __init__(self, batch: DistillBatch, step: Int[Array, ""]):
        self._seed, self._index, self.step = batch.seed, batch.index, step

    def examples(self, name: str) -> Key[Array, "B"]:
        return rng.example_keys(self.whole(name), self._index)

    def whole(self, name: str, used: bool = True) -> Key[Array, ""] | None:
        return rng.stream_key(self._seed, name, self.step) if used else None


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


def token_gradient(
    teacher: Float[Array, "B L V"],
    auxiliary: Float[Array, "B L V"],
    generator: Float[Array, "B L V"],
    mask: Bool[Array, "B L"],
    settings: DistillSettings,
) -> Float[Array, "B L V"]:
    """The cotangent of z_theta(x_init): w(t) grad D(teacher || auxiliary) where masked, else 0.

    Args:
        teacher: [B, L, V] logits, shaped already.
        auxiliary: [B, L, V] raw logits.
        generator: [B, L, V] raw logits z_theta(x_init).
        mask: [B, L].
        settings: divergence, Jacobian, reduction, weighting.

    Returns:
        [B, L, V] float32. As in the released code the gradient is taken in logits / temperature and
        applied to the generator's raw logits; at temperature 1 there is no difference.

    Source: Di[M]O equation 7; weighting "paper": its appendix C.
    """
    own = generator if settings.jacobian == "generator" else None
    gradient = divergences.logit_gradient(
        settings.divergence, teacher, auxiliary / settings.aux_temperature, own
    )
    weights = losses.token_weights(mask, settings.reduction)
    if settings.weighting == "paper":
        probs = jax.nn.softmax(generator / settings.generator.temperature)
        distance = jnp.abs(probs - jax.nn.softmax(teacher)).mean((1, 2))
        weights = weights / jnp.maximum(distance, 1e-5)[:, None]
    # where, not a product: a masked-out position must not spread a NaN.
    return jnp.where(mask[..., None], weights[..., None] * gradient, 0.0)


def _sample_metrics(
    generator: Array, teacher: Array, auxiliary: Array, mask: Array, settings: DistillSettings
) -> dict[str, Array]:
    """What tells collapse (entropy to 0, every token near one-hot) from divergence."""
    probs = jax.nn.softmax(generator)
    choices = (probs > 1e-3).sum(-1)
    entropy = -(probs * jax.nn.log_softmax(generator)).sum(-1).mean()
    distance = divergences.value(settings.divergence, teacher, auxiliary / settings.aux_temperature)
    return {
        "divergence": (losses.token_weights(mask, "mean_batch") * distance).sum(),
        "generator_entropy": entropy,
        "generator_choices": choices.mean(),
        "generator_one_hot": (choices == 1).mean(),
    }


def make_step(
    apply: Apply,
    apply_teacher: Apply,
    generator_optimizer: optax.GradientTransformation,
    aux_optimizer: optax.GradientTransformation,
    settings: DistillSettings,
) -> Callable[[DistillState, Any, DistillBatch], tuple[DistillState, dict[str, Array]]]:
    """The Di[M]O step, pure and ready for jit (donate the state, never the teacher).

    Args:
        apply: the network of generator and auxiliary.
        apply_teacher: the teacher's network, usually the same.
        generator_optimizer: clipping and frozen leaves included.
        aux_optimizer: likewise.
        settings: every choice.

    Returns:
        step(state, teacher_params, batch) -> (state, metrics). Cost in forward passes F and
        backward passes (2 F each): generator 3 F; teacher F, with guidance 2 F; auxiliary F for the
        divergence; then for each of K auxiliary updates 3 F, and F more where the sample is fresh.
        With "reuse" the divergence's forward of the auxiliary serves the first update too.

    Source: Di[M]O algorithm 1; order of the updates as in the released code.
    """
    return _Step(apply, apply_teacher, generator_optimizer, aux_optimizer, settings).run


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
    """What make_step closes over; `run` is the step."""

    apply: Apply
    apply_teacher: Apply
    generator_optimizer: optax.GradientTransformation
    aux_optimizer: optax.GradientTransformation
    settings: DistillSettings

    def run(
        self, state: DistillState, teacher_params: Any, batch: DistillBatch
    ) -> tuple[DistillState, dict[str, Array]]:
        """Generator, then auxiliary, then EMA."""
        settings, streams = self.settings, _Streams(batch, state.step)
        logits, pull_back = jax.vjp(
            lambda p: self.logits(p, streams, "generator", batch.condition), state.generator
        )
        tokens = self.draw(streams, "generator", logits)
        mask_keys = streams.examples("generator_mask")
        mask, ratio = masking.sample_mask(mask_keys, tokens.shape[1], settings.mask)
        x_t = masking.apply_mask(tokens, mask, settings.generator.mask_id)

        teacher = teacher_logits(
            self.apply_teacher,
            teacher_params,
            x_t,
            ratio,
            batch.condition,
            batch.null_condition,
            settings,
            streams.whole("teacher_dropout", settings.teacher_dropout),
        )
        auxiliary, pull_aux = self.judge(state.auxiliary, streams, x_t, batch.condition)
        cotangent = token_gradient(teacher, auxiliary, logits, mask, settings)
        (gradient,) = pull_back(cotangent.astype(logits.dtype))
        generator, generator_opt = denoise.descend(
            self.generator_optimizer, gradient, state.generator_opt, state.generator
        )

        first = None
        if pull_aux is not None:
            loss, aux_cotangent = jax.value_and_grad(denoise.denoise_loss)(
                auxiliary, tokens, mask, settings.aux, self.soft_targets(logits)
            )
            first = (loss, pull_aux(aux_cotangent)[0])
        sample = (tokens, logits)
        aux_params, aux_opt, aux_metrics = self.update_auxiliary(
            state, generator, streams, batch, sample, first
        )
        decay = ema.decay_at(state.step, settings.ema_decay, settings.ema_warmup)
        metrics = {
            **aux_metrics,
            "generator_grad_norm": optax.tree.norm(gradient),
            **_sample_metrics(logits, teacher, auxiliary, mask, settings),
        }
        new = DistillState(
            step=state.step + 1,
            generator=generator,
            auxiliary=aux_params,
            ema=ema.update(state.ema, generator, decay),
            generator_opt=generator_opt,
            aux_opt=aux_opt,
        )
        return new, metrics

    def logits(self, params: Any, streams: _Streams, name: str, condition: Any) -> Array:
        """z_theta of a new x_init, in the streams of that name."""
        settings = self.settings
        sigma: Any = settings.generator.sigma
        if settings.sigma_schedule != "fixed":
            sigma = sigma * schedules.warmup(
                streams.step, settings.sigma_schedule, settings.sigma_warmup_steps
            )
        start = initial_state(streams.examples(f"{name}_init"), settings.generator)
        dropout_key = streams.whole(f"{name}_dropout", settings.generator_dropout)
        return generator_logits(self.apply, params, start, condition, sigma, dropout_key)

    def draw(self, streams: _Streams, name: str, logits: Array) -> Array:
        """x_theta."""
        g, keys = self.settings.generator, streams.examples(f"{name}_sample")
        return sample_tokens(keys, logits, g.temperature, g.top_k, g.top_p)

    def soft_targets(self, logits: Array) -> Array | None:
        """The generator's probabilities, where the auxiliary learns from them."""
        if not self.settings.aux.soft_weight:
            return None
        return jax.nn.softmax(logits / self.settings.generator.temperature)

    def judge(
        self, params: Any, streams: _Streams, x_t: Array, condition: Any
    ) -> tuple[Array, Callable | None]:
        """The auxiliary's logits on x_t, and with "reuse" their pull-back for its own update."""
        key = streams.whole("aux_dropout", self.settings.aux_dropout)

        def logits(p: Any) -> Array:
            return self.apply(p, x_t, condition, dropout_key=key)

        if self.settings.aux_sample == "reuse":
            return jax.vjp(logits, params)
        return logits(params), None

    def update_auxiliary(
        self,
        state: DistillState,
        generator: Any,
        streams: _Streams,
        batch: DistillBatch,
        sample: tuple[Array, Array],
        first: tuple[Array, Any] | None,
    ) -> tuple[Any, Any, dict[str, Array]]:
        """K updates; `first` is the loss and gradient of update 0 where they are known already."""
        settings = self.settings
        params, opt_state, losses_ = state.auxiliary, state.aux_opt, []
        for k in range(settings.aux_updates):
            if first is not None and k == 0:
                loss, gradient = first
            else:
                name, condition, (tokens, logits) = f"aux{k}", batch.condition, sample
                if settings.aux_sample == "fresh":
                    condition = jax.tree.map(lambda c, k=k: c[k], batch.aux_condition)
                    logits = self.logits(generator, streams, name, condition)
                    tokens = self.draw(streams, name, logits)
                loss, gradient = denoise.denoise_gradient(
                    self.apply,
                    params,
                    streams.examples(f"{name}_mask"),
                    tokens,
                    condition,
                    batch.null_condition,
                    settings.aux,
                    streams.whole(f"{name}_own_dropout", settings.aux_dropout),
                    self.soft_targets(logits),
                )
            params, opt_state = denoise.descend(self.aux_optimizer, gradient, opt_state, params)
            losses_.append(loss)
        metrics = {
            "aux_loss": sum(losses_) / len(losses_),
            "aux_grad_norm": optax.tree.norm(gradient),
        }
        return params, opt_state, metrics
