"""What a step of Di[M]O changes, what it is given, and who takes part.

Axes: B batch, K auxiliary updates a step.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dimo_jax.method.masked.denoise import Apply


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


def create_state(
    params: Any,
    generator_optimizer: optax.GradientTransformation,
    aux_optimizer: optax.GradientTransformation,
) -> DistillState:
    """Copy `params` to generator, auxiliary and EMA: the teacher's, where it has the same tree.

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
