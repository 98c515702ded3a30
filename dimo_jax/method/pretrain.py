"""The teacher's own training step: masked prediction of data tokens.

Axes: B batch, L tokens.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from dimo_jax.method import denoise, ema
from dimo_jax.method.generate import Apply
from dimo_jax.training import rng


class PretrainState(flax.struct.PyTreeNode):
    """Everything that a pretraining step changes."""

    step: Int[Array, ""]
    params: Any
    ema: Any
    opt_state: Any


class PretrainBatch(flax.struct.PyTreeNode):
    """Data of one step.

    Attributes:
        seed: scalar.
        index: [B] global example indices within the step.
        tokens: [B, L] int32.
        condition: leading axis B.
        null_condition: the same structure.
    """

    seed: Int[Array, ""]
    index: Int[Array, "B"]
    tokens: Int[Array, "B L"]
    condition: Any
    null_condition: Any


def create_state(params: Any, optimizer: optax.GradientTransformation) -> PretrainState:
    """The state before the first step; the EMA starts as the parameters."""
    # A copy: donating a state in which two leaves share a buffer fails.
    copy = jax.tree.map(jnp.copy, params)
    return PretrainState(jnp.zeros((), jnp.int32), params, copy, optimizer.init(params))


def make_step(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    settings: denoise.DenoiseSettings,
    *,
    dropout: bool,
    ema_decay: float,
    ema_warmup: bool,
) -> Callable[[PretrainState, PretrainBatch], tuple[PretrainState, dict[str, Array]]]:
    """The training step of a teacher, pure and ready for jit.

    Args:
        apply: the network.
        optimizer: for its parameters.
        settings: the objective; condition_drop gives the teacher its unconditional branch.
        dropout: whether the network's dropout is on.
        ema_decay: decay of the averaged parameters, which become the teacher.
        ema_warmup: whether the decay starts low (ema.decay_at).

    Returns:
        step(state, batch) -> (state, metrics). It costs one forward and one backward pass.

    Source: Di[M]O equation 3; MaskGit-PyTorch v1.0, Trainer/vit.py.
    """

    def step(state: PretrainState, batch: PretrainBatch) -> tuple[PretrainState, dict[str, Array]]:
        mask_key = rng.stream_key(batch.seed, "pretrain_mask", state.step)
        dropout_key = rng.stream_key(batch.seed, "pretrain_dropout", state.step)
        loss, gradient = denoise.denoise_gradient(
            apply,
            state.params,
            rng.example_keys(mask_key, batch.index),
            batch.tokens,
            batch.condition,
            batch.null_condition,
            settings,
            dropout_key if dropout else None,
        )
        params, opt_state = denoise.descend(optimizer, gradient, state.opt_state, state.params)
        decay = ema.decay_at(state.step, ema_decay, ema_warmup)
        averaged = ema.update(state.ema, params, decay)
        metrics = {"teacher_loss": loss, "teacher_grad_norm": optax.tree.norm(gradient)}
        return PretrainState(state.step + 1, params, averaged, opt_state), metrics

    return step
