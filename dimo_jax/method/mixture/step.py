"""One update of Di4C's student, pure and ready for jit.

Axes: B batch, R numbers lambda (replicas) of an example, P parts of them, L tokens, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from dimo_jax.common import rng
from dimo_jax.method.masked import denoise, ema, guidance, masking, microbatches, schedules
from dimo_jax.method.masked.denoise import Apply
from dimo_jax.method.masked.pretrain import PretrainBatch
from dimo_jax.method.mixture import objective, targets
from dimo_jax.method.mixture.objective import ObjectiveSettings, Targets, Terms
from dimo_jax.method.mixture.targets import TeacherStepSettings


@dataclasses.dataclass(frozen=True)
class MixtureSettings:
    """One step of Di4C.

    Attributes:
        mask_id: the id of [MASK].
        replicas: R, numbers lambda of an example.
        condition_drop: probability that an example's condition is the null one, for the teacher
            and both passes of the student.
        objective: which terms count.
        teacher_step: from x_t to x_u.
        dropout: whether the student's dropout is on where it is differentiated.
        ema_decay: of the averaged student; 0: it is the student.
        ema_warmup: whether the decay starts low (ema.decay_at).
        parts: of the batch, computed one after the other.
        replica_parts: P, of the replicas of an example, likewise: they divide R. The gradient is
            the same, at one more forward pass of the student.
    """

    mask_id: int
    replicas: int
    condition_drop: float
    objective: ObjectiveSettings
    teacher_step: TeacherStepSettings
    dropout: bool
    ema_decay: float
    ema_warmup: bool
    parts: int = 1
    replica_parts: int = 1


class MixtureState(flax.struct.PyTreeNode):
    """Everything that a step changes; its fields are of any type, as those of DistillState.

    Attributes:
        step: int32 scalar, updates made.
        generator: the student's parameters.
        ema: their average.
        generator_opt: the optimizer's state.
    """

    step: Any
    generator: Any
    ema: Any
    generator_opt: Any


class Drawn(NamedTuple):
    """What examples are corrupted with, and the keys of what is drawn at x_t and x_u.

    Attributes:
        time: r.
        mask: True where x_t is masked.
        condition: partly the null one.
        mixture: lambda at x_t.
        later_mixture: lambda at x_u.
        teacher_keys: of the teacher's steps; fold_in makes one for each replica.
        later_keys: of the student's sequences, likewise.
    """

    time: Float[Array, "B"]
    mask: Bool[Array, "B L"]
    condition: Int[Array, "B"]
    mixture: Float[Array, "B R"]
    later_mixture: Float[Array, "B R"]
    teacher_keys: Key[Array, "B"]
    later_keys: Key[Array, "B"]


def create_state(params: Any, optimizer: optax.GradientTransformation) -> MixtureState:
    """Return the state before the first step; call it under jit, as distill_state.create_state."""
    generator, averaged = (jax.tree.map(jnp.copy, params) for _ in range(2))
    return MixtureState(jnp.zeros((), jnp.int32), generator, averaged, optimizer.init(generator))


def draw(
    keys: Key[Array, "B"],
    num_tokens: int,
    condition: Any,
    null_condition: Any,
    settings: MixtureSettings,
) -> Drawn:
    """Draw times, masks, dropped conditions and numbers lambda, each from an example's own key.

    Args:
        keys: [B].
        num_tokens: L.
        condition: labels [B].
        null_condition: the same structure.
        settings: of the step.
    """
    each = jax.vmap(lambda key: jax.random.split(key, 7))(keys)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (settings.replicas,)))
    time = jax.vmap(jax.random.uniform)(each[:, 0])
    ratio = schedules.mask_ratio(time, settings.teacher_step.schedule)
    drop = settings.condition_drop
    return Drawn(
        time=time,
        mask=masking.bernoulli_mask(each[:, 1], ratio, num_tokens),
        condition=guidance.drop_condition(each[:, 2], condition, null_condition, drop),
        mixture=uniform(each[:, 3]),
        later_mixture=uniform(each[:, 4]),
        teacher_keys=each[:, 5],
        later_keys=each[:, 6],
    )


def _student_logits(
    apply: Apply,
    params: Any,
    tokens: Int[Array, "B R L"],
    condition: Int[Array, "B"],
    mixture: Float[Array, "B R"],
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B R L V"]:
    """Return the student's logits at R numbers lambda, by one call of B R grids."""
    shape = mixture.shape
    given = {"label": jnp.repeat(condition, shape[1]), "mixture": mixture.reshape(-1)}
    flat = tokens.reshape(-1, tokens.shape[-1])
    logits = apply(params, flat, given, dropout_key=dropout_key)
    return logits.reshape(*shape, *logits.shape[1:])


def _in_chunks(x: Array, parts: int) -> Array:
    """[B, R, ...] -> [P, B, R / P, ...]: B stays the axis that is spread over devices."""
    return jnp.moveaxis(x.reshape(x.shape[0], parts, -1, *x.shape[2:]), 1, 0)


def _joined(x: Array) -> Array:
    """Undo `_in_chunks`."""
    moved = jnp.moveaxis(x, 0, 1)
    return moved.reshape(moved.shape[0], -1, *moved.shape[3:])


def student_logits(
    apply: Apply,
    params: Any,
    x_t: Int[Array, "B L"],
    condition: Int[Array, "B"],
    mixture: Float[Array, "B R"],
    parts: int = 1,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B R L V"]:
    """Return the student's logits at x_t, differentiable, with the activations of 1/parts of them.

    Args:
        apply: the student's network.
        params: its parameters.
        x_t: masked tokens.
        condition: labels.
        mixture: lambda.
        parts: P; of more than one the activations are computed again for the gradient.
        dropout_key: None for no dropout; another one in each part.
    """

    def of_chunk(chunk: tuple[Array, Array]) -> Float[Array, "B Q L V"]:
        some, number = chunk
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
        tokens = jnp.broadcast_to(x_t[:, None], (*some.shape, x_t.shape[1]))
        return _student_logits(apply, params, tokens, condition, some, key)

    if parts == 1:
        return of_chunk((mixture, jnp.int32(0)))
    chunks = (_in_chunks(mixture, parts), jnp.arange(parts))
    return _joined(jax.lax.map(jax.checkpoint(of_chunk), chunks))


def later_targets(
    apply: Apply,
    params: Any,
    x_t: Int[Array, "B L"],
    teacher: Float[Array, "B L V"],
    drawn: Drawn,
    settings: MixtureSettings,
) -> tuple[Int[Array, "B R L"], Float[Array, "B L V"]]:
    """Return sequences of the student one step of the teacher later, and their mean distribution.

    The student is the same one, without dropout; every position is drawn again.

    Args:
        apply: the student's network.
        params: its parameters.
        x_t: masked tokens.
        teacher: its log-probabilities there.
        drawn: masks, numbers and keys.
        settings: of the step.
    """

    def keys_of(keys: Key[Array, "B"], numbers: Int[Array, "B Q"]) -> Key[Array, "B Q"]:
        return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, numbers)

    def of_chunk(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        mixture, numbers = chunk
        keys = keys_of(drawn.teacher_keys, numbers)
        x_u = targets.teacher_step(
            keys, x_t, drawn.mask, drawn.time, teacher, settings.teacher_step
        )
        logits = _student_logits(apply, params, x_u, drawn.condition, mixture)
        keys = keys_of(drawn.later_keys, numbers)
        later = jax.vmap(jax.vmap(jax.random.categorical))(keys, logits)
        return total + jax.nn.softmax(logits).sum(1), later.astype(jnp.int32)

    numbers = jnp.broadcast_to(jnp.arange(settings.replicas)[None], drawn.later_mixture.shape)
    chunks = jax.tree.map(
        lambda x: _in_chunks(x, settings.replica_parts), (drawn.later_mixture, numbers)
    )
    total, later = jax.lax.scan(of_chunk, jnp.zeros_like(teacher), chunks)
    return _joined(later), total / settings.replicas


def make_step(
    apply: Apply,
    apply_teacher: Apply,
    optimizer: optax.GradientTransformation,
    settings: MixtureSettings,
    apply_trained: Apply | None = None,
) -> Callable[..., tuple[MixtureState, dict[str, Array]]]:
    """Return the training step.

    Args:
        apply: the student's network, which takes {"label", "mixture"}.
        apply_teacher: the teacher's, which takes labels.
        optimizer: for the student.
        settings: of the step.
        apply_trained: the student where it is differentiated, if anything is frozen in it.

    Returns:
        step(state, teacher_params, batch) -> (state, metrics), where the batch holds real tokens
        (pretrain.PretrainBatch). For each example it costs one forward pass of the teacher, R of
        the student and R forward and backward.

    Source: Di4C (arXiv 2410.08709) with its data term and control variate; sony/di4c.
    """
    trained = apply_trained or apply

    def step(
        state: MixtureState, teacher_params: Any, batch: PretrainBatch
    ) -> tuple[MixtureState, dict[str, Array]]:
        size, stream = len(batch.index), rng.stream_key(batch.seed, "mixture", state.step)
        dropout_key = rng.stream_key(batch.seed, "mixture_dropout", state.step)

        def of_part(part: tuple) -> tuple[tuple[Any, Any], None]:
            index, tokens, condition, null = part
            keys = rng.example_keys(stream, index)
            some = draw(keys, tokens.shape[1], condition, null, settings)
            x_t = masking.apply_mask(tokens, some.mask, settings.mask_id)
            with jax.named_scope("teacher"):
                teacher = apply_teacher(teacher_params, x_t, some.condition)
                teacher = jax.nn.log_softmax(teacher.astype(jnp.float32))
            with jax.named_scope("targets"):
                later, mean = later_targets(apply, state.generator, x_t, teacher, some, settings)
            compared = Targets(some.time, teacher, tokens, later, mean)
            # Another key for each part of a batch.
            key = jax.random.fold_in(dropout_key, index[0]) if settings.dropout else None

            def loss(params: Any) -> tuple[Array, Terms]:
                with jax.named_scope("generator"):
                    logits = student_logits(
                        *(trained, params, x_t, some.condition, some.mixture),
                        settings.replica_parts,
                        key,
                    )
                found = objective.terms(logits, compared, settings.objective)
                means = jax.tree.map(lambda x: x.sum() / size, found)
                return found.loss.sum() / size, means

            (value, means), gradient = jax.value_and_grad(loss, has_aux=True)(state.generator)
            return ((value, means), gradient), None

        ((value, means), gradient), _ = microbatches.in_parts(
            of_part,
            settings.parts,
            (batch.index, batch.tokens, batch.condition, batch.null_condition),
        )
        params, opt_state, update = denoise.descend(
            optimizer, gradient, state.generator_opt, state.generator
        )
        decay = ema.decay_at(state.step, settings.ema_decay, settings.ema_warmup)
        averaged = ema.update(state.ema, params, decay)
        metrics = {
            "generator_loss": value,
            "distillation_loss": means.distillation,
            "data_loss": means.data,
            "consistency_loss": means.consistency,
            "data_correlation": means.data_correlation,
            "consistency_correlation": -means.consistency_correlation,
            "generator_grad_norm": update["norm"],
            "updates_skipped": update["skipped"],
        }
        return MixtureState(state.step + 1, params, averaged, opt_state), metrics

    return step
