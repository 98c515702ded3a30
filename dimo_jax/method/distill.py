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
    """What one step is asked for; no images.

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
    """The random streams of one step for some examples, by name."""

    def __init__(self, seed: Int[Array, ""], index: Int[Array, "B"], step: Int[Array, ""]):
        self._seed, self._index, self.step = seed, index, step

    def examples(self, name: str) -> Key[Array, "B"]:
        return rng.example_keys(rng.stream_key(self._seed, name, self.step), self._index)

    def whole(self, name: str, used: bool = True) -> Key[Array, ""] | None:
        """One key for all examples, another one for each part of a batch."""
        if not used:
            return None
        return jax.random.fold_in(rng.stream_key(self._seed, name, self.step), self._index[0])


def make_step(
    apply: Apply,
    apply_teacher: Apply,
    generator_optimizer: optax.GradientTransformation,
    aux_optimizer: optax.GradientTransformation,
    settings: DistillSettings,
    apply_auxiliary: Apply | None = None,
) -> Callable[[DistillState, Any, DistillBatch], tuple[DistillState, dict[str, Array]]]:
    """The Di[M]O step, pure and ready for jit (donate the state, never the teacher).

    Args:
        apply: the network of generator and auxiliary.
        apply_teacher: the teacher's network, usually the same.
        generator_optimizer: clipping and frozen leaves included.
        aux_optimizer: likewise.
        settings: every choice.
        apply_auxiliary: the auxiliary's network, where it is not differentiated like the
            generator's.

    Returns:
        step(state, teacher_params, batch) -> (state, metrics). Cost in forward passes F and
        backward passes (2 F each): generator 3 F; teacher F, with guidance 2 F; auxiliary F for the
        divergence; then for each of K auxiliary updates 3 F, and F more where the sample is fresh.
        With "reuse" the divergence's forward of the auxiliary serves the first update too.

    Source: Di[M]O algorithm 1; order of the updates as in the released code.
    """
    applies = (apply, apply_teacher, apply_auxiliary or apply)
    return _Step(*applies, generator_optimizer, aux_optimizer, settings).run


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
    """What make_step closes over; `run` is the step."""

    apply: Apply
    apply_teacher: Apply
    apply_auxiliary: Apply
    generator_optimizer: optax.GradientTransformation
    aux_optimizer: optax.GradientTransformation
    settings: DistillSettings

    def run(
        self, state: DistillState, teacher_params: Any, batch: DistillBatch
    ) -> tuple[DistillState, dict[str, Array]]:
        """Generator, then auxiliary, then EMA."""
        settings = self.settings
        examples = self.examples(state.step, batch)
        sums, samples = accumulate.in_parts(
            lambda part: self.generator_part(state, teacher_params, batch.seed, part),
            settings.parts,
            examples,
        )
        generator, generator_opt, update = denoise.descend(
            self.generator_optimizer, sums.pop("gradient"), state.generator_opt, state.generator
        )
        first = sums.pop("aux", None)
        aux_params, aux_opt, aux_metrics = self.update_auxiliary(
            state, generator, batch, examples, samples, first
        )
        decay = ema.decay_at(state.step, settings.ema_decay, settings.ema_warmup)
        metrics = {
            **sums.pop("metrics"),
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

    def examples(self, step: Array, batch: DistillBatch) -> dict[str, Any]:
        """What is known of every example before a network is called, leading axis B."""
        settings = self.settings
        keys = _Streams(batch.seed, batch.index, step).examples("generator_mask")
        # The whole batch's masks at once: a part's weights depend on how many tokens all have.
        mask, ratio = masking.sample_mask(keys, settings.generator.num_tokens, settings.mask)
        return {
            "index": batch.index,
            "condition": batch.condition,
            "null_condition": batch.null_condition,
            "mask": mask,
            "ratio": ratio,
            "weights": losses.token_weights(mask, settings.reduction),
            "mean_weights": losses.token_weights(mask, "mean_batch"),
            "aux_weights": denoise.weights_of(mask, settings.aux),
            "share": jnp.full(batch.index.shape, 1 / len(batch.index)),
        }

    def generator_part(
        self, state: DistillState, teacher_params: Any, seed: Array, part: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The generator's gradient from some examples, and what the auxiliary needs of them."""
        settings, streams = self.settings, _Streams(seed, part["index"], state.step)
        condition, share = part["condition"], part["share"]
        logits, pull_back = jax.vjp(
            lambda p: self.logits(p, streams, "generator", condition), state.generator
        )
        tokens = self.draw(streams, "generator", logits)
        x_t = masking.apply_mask(tokens, part["mask"], settings.generator.mask_id)
        teacher = teacher_logits(
            self.apply_teacher,
            teacher_params,
            x_t,
            part["ratio"],
            condition,
            part["null_condition"],
            settings,
            streams.whole("teacher_dropout", settings.teacher_dropout),
        )
        auxiliary, pull_aux = self.judge(state.auxiliary, streams, x_t, condition)
        cotangent = token_gradient(teacher, auxiliary, logits, part["weights"], settings)
        (gradient,) = pull_back(cotangent.astype(logits.dtype))
        values = sample_metrics(logits, teacher, auxiliary, part["mean_weights"], settings)
        sums = {
            "gradient": gradient,
            "metrics": {
                name: (x if name == "divergence" else x * share).sum() for name, x in values.items()
            },
        }
        samples = {}
        if pull_aux is not None:
            loss, aux_cotangent = jax.value_and_grad(denoise.denoise_loss)(
                auxiliary, tokens, part["aux_weights"], settings.aux, self.soft_targets(logits)
            )
            sums["aux"] = (loss, pull_aux(aux_cotangent)[0])
            if settings.aux_updates > 1:
                samples = {"tokens": tokens}
                if settings.aux.soft_weight:
                    samples["logits"] = logits
        return sums, samples

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

    def soft_targets(self, logits: Array | None) -> Array | None:
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
            return self.apply_auxiliary(p, x_t, condition, dropout_key=key)

        if self.settings.aux_sample == "reuse":
            return jax.vjp(logits, params)
        return logits(params), None

    def update_auxiliary(
        self,
        state: DistillState,
        generator: Any,
        batch: DistillBatch,
        examples: dict[str, Any],
        samples: dict[str, Any],
        first: tuple[Array, Any] | None,
    ) -> tuple[Any, Any, dict[str, Array]]:
        """K updates; `first` is the loss and gradient of update 0 where they are known already."""
        settings = self.settings
        params, opt_state, losses_, skipped = state.auxiliary, state.aux_opt, [], 0.0
        for k in range(settings.aux_updates):
            if first is not None and k == 0:
                loss, gradient = first
            else:
                name, condition = f"aux{k}", batch.condition
                if settings.aux_sample == "fresh":
                    condition = jax.tree.map(lambda c, k=k: c[k], batch.aux_condition)
                keys = _Streams(batch.seed, batch.index, state.step).examples(f"{name}_mask")
                corrupted = denoise.corruption(
                    keys,
                    settings.generator.num_tokens,
                    condition,
                    batch.null_condition,
                    settings.aux,
                )
                (loss, gradient), _ = accumulate.in_parts(
                    lambda part, p=params, name=name: self.auxiliary_part(
                        p, generator, batch.seed, state.step, name, part
                    ),
                    settings.parts,
                    {
                        "index": examples["index"],
                        "condition": condition,
                        "corrupted": corrupted,
                        **samples,
                    },
                )
            params, opt_state, update = denoise.descend(
                self.aux_optimizer, gradient, opt_state, params
            )
            losses_.append(loss)
            skipped = skipped + update["skipped"]
        metrics = {
            "aux_loss": sum(losses_) / len(losses_),
            "aux_grad_norm": update["norm"],
            "updates_skipped": skipped,
        }
        return params, opt_state, metrics

    def auxiliary_part(
        self,
        params: Any,
        generator: Any,
        seed: Array,
        step: Array,
        name: str,
        part: dict[str, Any],
    ) -> tuple[tuple[Array, Any], None]:
        """The auxiliary's loss and gradient from some examples, on samples kept or fresh."""
        settings, streams = self.settings, _Streams(seed, part["index"], step)
        tokens, logits = part.get("tokens"), part.get("logits")
        if settings.aux_sample == "fresh":
            logits = self.logits(generator, streams, name, part["condition"])
            tokens = self.draw(streams, name, logits)
        found = denoise.denoise_gradient(
            self.apply_auxiliary,
            params,
            tokens,
            part["corrupted"],
            settings.aux,
            streams.whole(f"{name}_own_dropout", settings.aux_dropout),
            self.soft_targets(logits),
        )
        return found, None
