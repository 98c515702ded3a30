"""Algorithm 1 of Di[M]O: one pure function from (state, teacher, batch) to (state, metrics).

Axes: B batch, L tokens, V vocabulary, K auxiliary updates a step.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from dimo_jax.method.dimo import auxiliary, samples
from dimo_jax.method.dimo.distill_state import DistillBatch, DistillState, Networks, Optimizers
from dimo_jax.method.dimo.samples import Drawn, Streams
from dimo_jax.method.dimo.settings import DistillSettings
from dimo_jax.method.dimo.token_gradient import sample_metrics, teacher_logits, token_gradient
from dimo_jax.method.masked import denoise, ema, losses, masking, microbatches
from dimo_jax.method.masked.denoise import Apply


class Masked(NamedTuple):
    """Which tokens of a sample are masked again, and what each of them weighs.

    Drawn for a whole batch before any network runs: the weights depend on how many tokens all its
    examples have masked. Leading axis B.

    Attributes:
        mask: [B, L] bool.
        ratio: [B], what the mask was drawn with.
        weights: [B, L] of the token gradient.
        metric_weights: [B, L] of the reported divergence.
        aux_weights: [B, L] of the auxiliary's loss on the same sample.
        step: [B], of the generator's steps the one that is trained; None where there is one.
    """

    mask: Any
    ratio: Any
    weights: Any
    metric_weights: Any
    aux_weights: Any
    step: Any = None


class _Examples(NamedTuple):
    """The microbatch of a generator's step."""

    index: Any
    condition: Any
    null_condition: Any
    masked: Masked
    share: Any  # [B] of each example in the batch's means


class _Sums(NamedTuple):
    """What the microbatches of a generator's step add up to.

    Attributes:
        gradient: of the generator.
        metrics: scalars by name.
        aux: the auxiliary's loss and its gradient on the same sample, None with "fresh".
    """

    gradient: Any
    metrics: dict[str, Any]
    aux: Any


def make_step(
    apply: Apply,
    apply_teacher: Apply,
    generator_optimizer: optax.GradientTransformation,
    aux_optimizer: optax.GradientTransformation,
    settings: DistillSettings,
    apply_auxiliary: Apply | None = None,
) -> Callable[[DistillState, Any, DistillBatch], tuple[DistillState, dict[str, Array]]]:
    """Bind networks, optimizers and settings to `step`, ready for jit.

    Args:
        apply: the network of generator and auxiliary.
        apply_teacher: the teacher's network, usually the same.
        generator_optimizer: clipping and frozen leaves included.
        aux_optimizer: likewise.
        settings: every choice.
        apply_auxiliary: the auxiliary's network, where it is not differentiated like the
            generator's.

    Returns:
        step(state, teacher_params, batch) -> (state, metrics); donate the state, never the teacher.
        It costs, in forward passes F with backward passes at 2 F each: generator 3 F; teacher F,
        with guidance 2 F; auxiliary F for the divergence; then for each of K auxiliary updates 3 F,
        and F more where the sample is fresh. With "reuse" the divergence's forward of the auxiliary
        serves the first update too. A generator of S steps takes S - 1 forward passes more for
        every sample of it.
    """
    networks = Networks(
        _named("generator", apply),
        _named("teacher", apply_teacher),
        _named("auxiliary", apply_auxiliary or apply),
    )
    return functools.partial(
        step, networks, Optimizers(generator_optimizer, aux_optimizer), settings
    )


def _named(name: str, apply: Apply) -> Apply:
    """Return the network under its role's name in a program's text and in traces."""

    def run(*args: Any, **options: Any) -> Array:
        with jax.named_scope(name):
            return apply(*args, **options)

    return run


def step(
    networks: Networks,
    optimizers: Optimizers,
    settings: DistillSettings,
    state: DistillState,
    teacher_params: Any,
    batch: DistillBatch,
) -> tuple[DistillState, dict[str, Array]]:
    """Update generator, auxiliary and EMA once; pure.

    Source: Di[M]O algorithm 1; order of the updates as in the released code.
    """
    masked = mask_again(Streams(batch.seed, state.step, batch.index), settings)

    def generator_gradient(examples: _Examples) -> tuple[_Sums, Drawn]:
        streams = Streams(batch.seed, state.step, examples.index)
        condition, masked = examples.condition, examples.masked
        before = samples.start(
            networks.generator,
            state.generator,
            streams,
            "generator",
            condition,
            settings,
            masked.step,
        )
        # One forward pass of the generator gives its logits, its sample and the pull-back.
        logits, pull_back = jax.vjp(
            lambda p: samples.sample_logits(
                networks.generator, p, streams, "generator", before, condition, settings
            ),
            state.generator,
        )
        tokens = samples.draw_tokens(logits, streams, "generator", before, settings)
        x_t = masking.apply_mask(tokens, masked.mask, settings.generator.mask_id)
        # Neither is differentiated in the generator: what it learns is in the cotangent alone.
        teacher = teacher_logits(
            networks.teacher,
            teacher_params,
            x_t,
            masked.ratio,
            condition,
            examples.null_condition,
            settings,
            streams.batch("teacher_dropout", settings.teacher_dropout),
        )
        dropout_key = streams.batch("aux_dropout", settings.aux_dropout)
        aux_logits, pull_aux = _forward(
            lambda p: networks.auxiliary(p, x_t, condition, dropout_key=dropout_key),
            state.auxiliary,
            differentiated=settings.aux_sample == "reuse",
        )
        cotangent = token_gradient(teacher, aux_logits, logits, masked.weights, settings)
        (gradient,) = pull_back(cotangent.astype(logits.dtype))
        values = sample_metrics(logits, teacher, aux_logits, masked.metric_weights, settings)
        metrics = _summed(values, examples.share)
        first, kept = auxiliary.of_same_sample(
            pull_aux, aux_logits, Drawn(logits, tokens), masked.aux_weights, settings
        )
        return _Sums(gradient, metrics, first), kept

    share = jnp.full(batch.index.shape, 1 / len(batch.index))
    sums, drawn = microbatches.in_parts(
        generator_gradient,
        settings.parts,
        _Examples(batch.index, batch.condition, batch.null_condition, masked, share),
    )
    generator, generator_opt, update = denoise.descend(
        optimizers.generator, sums.gradient, state.generator_opt, state.generator
    )
    aux_params, aux_opt, aux_metrics = auxiliary.update_auxiliary(
        networks, optimizers.auxiliary, settings, state, generator, batch, drawn, sums.aux
    )
    decay = ema.decay_at(state.step, settings.ema_decay, settings.ema_warmup)
    metrics = {
        **sums.metrics,
        **aux_metrics,
        "generator_grad_norm": update["norm"],
        "updates_skipped": update["skipped"] + aux_metrics["updates_skipped"],
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


def mask_again(streams: Streams, settings: DistillSettings) -> Masked:
    """Draws the mask of every example of a batch at a random time, and the weights it implies.

    Of a generator of several steps, the step that each example is trained in too.
    """
    step, drawn, learns = samples.draw_step(streams, "generator", settings), None, None
    if step is not None:
        drawn = samples.drawn_positions(streams, "generator", step, settings)
        learns = step == settings.generator.num_steps if settings.aux_steps == "last" else None
    mask, ratio = masking.sample_mask(
        streams.examples("generator_mask"),
        settings.generator.num_tokens,
        settings.mask,
        drawn if settings.step_remask == "drawn" else None,
    )
    trained = mask if drawn is None else mask & drawn
    return Masked(
        mask=mask,
        ratio=ratio,
        weights=losses.token_weights(trained, settings.reduction),
        metric_weights=losses.token_weights(trained, "mean_batch"),
        aux_weights=denoise.weights_of(mask, settings.aux, learns),
        step=step,
    )


def _forward(
    function: Callable[[Any], Array], params: Any, differentiated: bool
) -> tuple[Array, Callable | None]:
    """Call function(params); its pull-back comes with it only where somebody needs it."""
    return jax.vjp(function, params) if differentiated else (function(params), None)


def _summed(values: dict[str, Array], share: Array) -> dict[str, Array]:
    """Sum metrics [B] over examples: the divergence as it is, the rest to the batch's mean."""
    return {name: (x if name == "divergence" else x * share).sum() for name, x in values.items()}
