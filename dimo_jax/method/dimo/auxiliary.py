"""The auxiliary's update: masked prediction of the generator's own samples.

Axes: B batch, L tokens, V vocabulary, K auxiliary updates a step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float

from dimo_jax.method.dimo import samples
from dimo_jax.method.dimo.distill_state import DistillBatch, DistillState, Networks
from dimo_jax.method.dimo.samples import Drawn
from dimo_jax.method.dimo.settings import DistillSettings
from dimo_jax.method.masked import denoise, microbatches


class _AuxExamples(NamedTuple):
    """The microbatch of an auxiliary's update; `drawn` is empty where a fresh sample is due."""

    index: Any
    condition: Any
    corrupted: denoise.Corruption
    drawn: Drawn


def of_same_sample(
    pull_back: Callable[[Array], tuple[Any]] | None,
    aux_logits: Float[Array, "B L V"],
    drawn: Drawn,
    weights: Float[Array, "B L"],
    settings: DistillSettings,
) -> tuple[tuple[Array, Any] | None, Drawn]:
    """Make the first update's gradient of the forward pass that the divergence took ("reuse").

    Args:
        pull_back: of that pass; None with "fresh", where there is nothing to make.
        aux_logits: its logits.
        drawn: the generator's sample.
        weights: of every token's loss.
        settings: the auxiliary's objective.

    Returns:
        (loss, gradient) or None, and what later updates need of the sample.
    """
    if pull_back is None:
        return None, Drawn()
    soft = samples.soft_targets(drawn.logits, settings)
    loss, cotangent = jax.value_and_grad(denoise.denoise_loss)(
        aux_logits, drawn.tokens, weights, settings.aux, soft
    )
    first = (loss, pull_back(cotangent)[0])
    if settings.aux_updates == 1:
        return first, Drawn()
    return first, drawn._replace(logits=drawn.logits if settings.aux.soft_weight else None)


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
    """Make K updates of masked prediction on the generator's own samples.

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
                samples.Streams(batch.seed, state.step, batch.index).examples(f"{name}_mask"),
                settings.generator.num_tokens,
                condition,
                batch.null_condition,
                settings.aux,
            )

            def aux_gradient(
                examples: _AuxExamples, params: Any = params, name: str = name
            ) -> tuple[tuple[Array, Any], None]:
                streams = samples.Streams(batch.seed, state.step, examples.index)
                logits, tokens = examples.drawn
                if settings.aux_sample == "fresh":
                    logits, tokens = _fresh(
                        networks, generator, streams, name, examples.condition, settings
                    )
                loss, gradient, _ = denoise.denoise_gradient(
                    networks.auxiliary,
                    params,
                    tokens,
                    examples.corrupted,
                    settings.aux,
                    streams.batch(f"{name}_own_dropout", settings.aux_dropout),
                    samples.soft_targets(logits, settings),
                )
                return (loss, gradient), None

            (loss, gradient), _ = microbatches.in_parts(
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


def _fresh(
    networks: Networks,
    generator: Any,
    streams: samples.Streams,
    name: str,
    condition: Any,
    settings: DistillSettings,
) -> tuple[Array, Array]:
    """Logits and tokens of a new sample of the generator."""
    every = settings.aux_steps == "every"
    step = samples.draw_step(streams, name, settings) if every else None
    before = samples.start(networks.generator, generator, streams, name, condition, settings, step)
    logits = samples.sample_logits(
        networks.generator, generator, streams, name, before, condition, settings
    )
    return logits, samples.draw_tokens(logits, streams, name, before, settings)
