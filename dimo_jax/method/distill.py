"""Algorithm 1 of Di[M]O: one pure function from (state, teacher, batch) to (state, metrics).

Axes: B batch, L tokens, V vocabulary, K auxiliary updates a step.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from dimo_jax.method import accumulate, denoise, ema, losses, masking, schedules
from dimo_jax.method.distill_settings import DistillSettings
from dimo_jax.method.generate import Apply, generator_logits, initial_state, sample_tokens
from dimo_jax.method.token_gradient import sample_metrics, teacher_logits, token_gradient
from dimo_jax.training import rng


class DistillState(flax.struct.PyTreeNode):
    """Everything that a step changes. The frozen teacher is not in it.

    Its fields are of any type, as those of the batch, because the same classes hold arrays, their
    shapes and their shardings.

    Attributes:
        step: int32 scalar, updates made.
        generator: parameters.
        auxiliary: parameters.
        ema: the averaged generator.
        generator_opt: the generator's optimizer state.
        aux_opt: the auxiliary's.
    """

    step: Any
    generator: Any
    auxiliary: Any
    ema: Any
    generator_opt: Any
    aux_opt: Any


class DistillBatch(flax.struct.PyTreeNode):
    """What one step is given; no images.

    Attributes:
        seed: int32 scalar.
        index: [B] int32, global example indices within the step.
        condition: the generator's, leading axis B.
        aux_condition: for fresh samples, leading axes K, B; None where the sample is reused.
        null_condition: the teacher's unconditional branch, leading axis B.
    """

    seed: Any
    index: Any
    condition: Any
    aux_condition: Any
    null_condition: Any


class Networks(NamedTuple):
    """The three roles; usually one network with other parameters."""

    generator: Apply
    teacher: Apply
    auxiliary: Apply


class Optimizers(NamedTuple):
    """Clipping and frozen leaves included."""

    generator: optax.GradientTransformation
    auxiliary: optax.GradientTransformation


class Drawn(NamedTuple):
    """A sample of the generator; None for what is not kept.

    Attributes:
        logits: z_theta(x_init) [B, L, V].
        tokens: x_theta [B, L] int32.
    """

    logits: Any = None
    tokens: Any = None


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
    """

    mask: Any
    ratio: Any
    weights: Any
    metric_weights: Any
    aux_weights: Any


class _Examples(NamedTuple):
    """The microbatch of a generator's step."""

    index: Any
    condition: Any
    null_condition: Any
    masked: Masked
    share: Any  # [B] of each example in the batch's means


class _AuxExamples(NamedTuple):
    """The microbatch of an auxiliary's update; `drawn` is empty where a fresh sample is due."""

    index: Any
    condition: Any
    corrupted: denoise.Corruption
    drawn: Drawn


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


def create_state(
    params: Any,
    generator_optimizer: optax.GradientTransformation,
    aux_optimizer: optax.GradientTransformation,
) -> DistillState:
    """Copies `params` to generator, auxiliary and EMA: the teacher's, where it has the same tree.

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


def make_step(
    apply: Apply,
    apply_teacher: Apply,
    generator_optimizer: optax.GradientTransformation,
    aux_optimizer: optax.GradientTransformation,
    settings: DistillSettings,
    apply_auxiliary: Apply | None = None,
) -> Callable[[DistillState, Any, DistillBatch], tuple[DistillState, dict[str, Array]]]:
    """Binds networks, optimizers and settings to `step`, ready for jit.

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
    """
    networks = Networks(apply, apply_teacher, apply_auxiliary or apply)
    return functools.partial(
        step, networks, Optimizers(generator_optimizer, aux_optimizer), settings
    )


def step(
    networks: Networks,
    optimizers: Optimizers,
    settings: DistillSettings,
    state: DistillState,
    teacher_params: Any,
    batch: DistillBatch,
) -> tuple[DistillState, dict[str, Array]]:
    """Updates generator, auxiliary and EMA once; pure.

    Costs, in forward passes F with backward passes at 2 F each: generator 3 F; teacher F, with
    guidance 2 F; auxiliary F for the divergence; then for each of K auxiliary updates 3 F, and F
    more where the sample is fresh. With "reuse" the divergence's forward of the auxiliary serves
    the first update too.

    Source: Di[M]O algorithm 1; order of the updates as in the released code.
    """
    masked = mask_again(_Streams(batch.seed, state.step, batch.index), settings)

    def generator_gradient(examples: _Examples) -> tuple[_Sums, Drawn]:
        streams = _Streams(batch.seed, state.step, examples.index)
        condition, masked = examples.condition, examples.masked
        # One forward pass of the generator gives its logits, its sample and the pull-back.
        logits, pull_back = jax.vjp(
            lambda p: _logits(networks, p, streams, "generator", condition, settings),
            state.generator,
        )
        tokens = _draw(logits, streams, "generator", settings)
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
        auxiliary, pull_aux = _forward(
            lambda p: networks.auxiliary(p, x_t, condition, dropout_key=dropout_key),
            state.auxiliary,
            differentiated=settings.aux_sample == "reuse",
        )
        cotangent = token_gradient(teacher, auxiliary, logits, masked.weights, settings)
        (gradient,) = pull_back(cotangent.astype(logits.dtype))
        values = sample_metrics(logits, teacher, auxiliary, masked.metric_weights, settings)
        metrics = {
            name: (x if name == "divergence" else x * examples.share).sum()
            for name, x in values.items()
        }
        if pull_aux is None:
            return _Sums(gradient, metrics, None), Drawn()
        loss, aux_cotangent = jax.value_and_grad(denoise.denoise_loss)(
            auxiliary, tokens, masked.aux_weights, settings.aux, _soft_targets(logits, settings)
        )
        sums = _Sums(gradient, metrics, (loss, pull_aux(aux_cotangent)[0]))
        if settings.aux_updates == 1:
            return sums, Drawn()
        return sums, Drawn(logits if settings.aux.soft_weight else None, tokens)

    share = jnp.full(batch.index.shape, 1 / len(batch.index))
    sums, drawn = accumulate.in_parts(
        generator_gradient,
        settings.parts,
        _Examples(batch.index, batch.condition, batch.null_condition, masked, share),
    )
    generator, generator_opt, update = denoise.descend(
        optimizers.generator, sums.gradient, state.generator_opt, state.generator
    )
    auxiliary, aux_opt, aux_metrics = update_auxiliary(
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
        auxiliary=auxiliary,
        ema=ema.update(state.ema, generator, decay),
        generator_opt=generator_opt,
        aux_opt=aux_opt,
    )
    return new, metrics


def update_auxiliary(
    networks: Networks,
    optimizer: optax.GradientTransformation,
    settings: DistillSettings,
    state: DistillState,
    generator: Any,
    batch: DistillBatch,
    drawn: Drawn,
    first: tuple[Array, Any] | None,
) -> tuple[Any, Any, dict[str, Array]]:
    """Makes K updates of masked prediction on the generator's own samples.

    Args:
        networks: as in `step`.
        optimizer: the auxiliary's.
        settings: "fresh" draws a new sample of the updated generator for each update, "reuse" masks
            the same one again.
        state: before the step.
        generator: its updated parameters.
        batch: as in `step`.
        drawn: the sample of the step, with "reuse" and K > 1.
        first: loss and gradient of the first update where the step has them already ("reuse").

    Returns:
        The auxiliary's parameters, its optimizer state and the metrics.
    """
    params, opt_state, values, skipped = state.auxiliary, state.aux_opt, [], 0.0
    for k in range(settings.aux_updates):
        if first is not None and k == 0:
            loss, gradient = first
        else:
            name, condition = f"aux{k}", batch.condition
            if settings.aux_sample == "fresh":
                condition = jax.tree.map(lambda c, k=k: c[k], batch.aux_condition)
            corrupted = denoise.corruption(
                _Streams(batch.seed, state.step, batch.index).examples(f"{name}_mask"),
                settings.generator.num_tokens,
                condition,
                batch.null_condition,
                settings.aux,
            )

            def aux_gradient(
                examples: _AuxExamples, params: Any = params, name: str = name
            ) -> tuple[tuple[Array, Any], None]:
                streams = _Streams(batch.seed, state.step, examples.index)
                logits, tokens = examples.drawn
                if settings.aux_sample == "fresh":
                    logits = _logits(
                        networks, generator, streams, name, examples.condition, settings
                    )
                    tokens = _draw(logits, streams, name, settings)
                found = denoise.denoise_gradient(
                    networks.auxiliary,
                    params,
                    tokens,
                    examples.corrupted,
                    settings.aux,
                    streams.batch(f"{name}_own_dropout", settings.aux_dropout),
                    _soft_targets(logits, settings),
                )
                return found, None

            (loss, gradient), _ = accumulate.in_parts(
                aux_gradient,
                settings.parts,
                _AuxExamples(batch.index, condition, corrupted, drawn),
            )
        params, opt_state, update = denoise.descend(optimizer, gradient, opt_state, params)
        values.append(loss)
        skipped = skipped + update["skipped"]
    metrics = {
        "aux_loss": sum(values) / len(values),
        "aux_grad_norm": update["norm"],
        "updates_skipped": skipped,
    }
    return params, opt_state, metrics


class _Streams:
    """Random keys of one step for some examples, by the stream's name."""

    def __init__(self, seed: Int[Array, ""], step: Int[Array, ""], index: Int[Array, "B"]):
        self._seed, self.step, self._index = seed, step, index

    def examples(self, name: str) -> Key[Array, "B"]:
        """One key for each example."""
        return rng.example_keys(rng.stream_key(self._seed, name, self.step), self._index)

    def batch(self, name: str, used: bool) -> Key[Array, ""] | None:
        """One key for all examples, another one for each microbatch; None where it is not used."""
        if not used:
            return None
        return jax.random.fold_in(rng.stream_key(self._seed, name, self.step), self._index[0])


def mask_again(streams: _Streams, settings: DistillSettings) -> Masked:
    """Draws the mask of every example of a batch at a random time, and the weights it implies."""
    mask, ratio = masking.sample_mask(
        streams.examples("generator_mask"), settings.generator.num_tokens, settings.mask
    )
    return Masked(
        mask=mask,
        ratio=ratio,
        weights=losses.token_weights(mask, settings.reduction),
        metric_weights=losses.token_weights(mask, "mean_batch"),
        aux_weights=denoise.weights_of(mask, settings.aux),
    )


def _logits(
    networks: Networks,
    params: Any,
    streams: _Streams,
    name: str,
    condition: Any,
    settings: DistillSettings,
) -> Array:
    """Computes z_theta [B, L, V] of a new x_init, in the streams of that name."""
    sigma: Any = settings.generator.sigma
    if settings.sigma_schedule != "fixed":
        sigma = sigma * schedules.warmup(
            streams.step, settings.sigma_schedule, settings.sigma_warmup_steps
        )
    start = initial_state(streams.examples(f"{name}_init"), settings.generator)
    dropout_key = streams.batch(f"{name}_dropout", settings.generator_dropout)
    return generator_logits(networks.generator, params, start, condition, sigma, dropout_key)


def _draw(logits: Array, streams: _Streams, name: str, settings: DistillSettings) -> Array:
    """Draws x_theta [B, L]."""
    chosen, keys = settings.generator, streams.examples(f"{name}_sample")
    return sample_tokens(keys, logits, chosen.temperature, chosen.top_k, chosen.top_p)


def _forward(
    function: Callable[[Any], Array], params: Any, differentiated: bool
) -> tuple[Array, Callable | None]:
    """Calls function(params); its pull-back comes with it only where somebody needs it."""
    return jax.vjp(function, params) if differentiated else (function(params), None)


def _soft_targets(logits: Array | None, settings: DistillSettings) -> Array | None:
    """Gives the generator's probabilities, where the auxiliary learns from them."""
    if not settings.aux.soft_weight:
        return None
    return jax.nn.softmax(logits / settings.generator.temperature)
