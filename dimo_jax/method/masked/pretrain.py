"""The teacher's own training step: masked prediction of data tokens.

Axes: B batch, L tokens.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from dimo_jax.common import rng
from dimo_jax.method.masked import denoise, ema, microbatches
from dimo_jax.method.masked.denoise import Apply

# How the names of metrics begin that are of some mask ratios alone; without an example of these in
# a batch they are not numbers.
BY_RATIO = "teacher_loss_at_"


class PretrainState(flax.struct.PyTreeNode):
    """Everything that a pretraining step changes; step is an int32 scalar.

    Its fields are of any type, as those of the batch, because the same classes hold arrays, their
    shapes and their shardings.
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any


class PretrainBatch(flax.struct.PyTreeNode):
    """Data of one step.

    Attributes:
        seed: int32 scalar.
        index: [B] int32, global example indices within the step.
        tokens: [B, L] int32.
        condition: leading axis B.
        null_condition: the same structure.
    """

    seed: Any
    index: Any
    tokens: Any
    condition: Any
    null_condition: Any


def create_state(params: Any, optimizer: optax.GradientTransformation) -> PretrainState:
    """Return the state before the first step; the EMA starts as the parameters."""
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
    parts: int = 1,
    loss_bins: int = 0,
) -> Callable[[PretrainState, PretrainBatch], tuple[PretrainState, dict[str, Array]]]:
    """Return the training step of a teacher, pure and ready for jit.

    Args:
        apply: the network.
        optimizer: for its parameters.
        settings: the objective; condition_drop gives the teacher its unconditional branch.
        dropout: whether the network's dropout is on.
        ema_decay: decay of the averaged parameters, which become the teacher.
        ema_warmup: whether the decay starts low (ema.decay_at).
        parts: in how many parts the network sees a batch; the gradient is that of the whole.
        loss_bins: of the mask ratio, in which the loss of masked tokens is a metric of its own.

    Returns:
        step(state, batch) -> (state, metrics). It costs one forward and one backward pass.

    Source: Di[M]O equation 3; MaskGit-PyTorch v1.0, Trainer/vit.py.
    """

    def step(state: PretrainState, batch: PretrainBatch) -> tuple[PretrainState, dict[str, Array]]:
        keys = rng.example_keys(
            rng.stream_key(batch.seed, "pretrain_mask", state.step), batch.index
        )
        corrupted = denoise.corruption(
            keys, batch.tokens.shape[1], batch.condition, batch.null_condition, settings
        )
        dropout_key = rng.stream_key(batch.seed, "pretrain_dropout", state.step)

        def of_part(part: tuple) -> tuple[tuple[Array, Any, Any], None]:
            index, tokens, part_corrupted = part
            # Another key for each part of a batch.
            key = jax.random.fold_in(dropout_key, index[0]) if dropout else None
            found = denoise.denoise_gradient(
                apply, state.params, tokens, part_corrupted, settings, key, loss_bins=loss_bins
            )
            return found, None

        (loss, gradient, by_ratio), _ = microbatches.in_parts(
            of_part, parts, (batch.index, batch.tokens, corrupted)
        )
        params, opt_state, update = denoise.descend(
            optimizer, gradient, state.opt_state, state.params
        )
        decay = ema.decay_at(state.step, ema_decay, ema_warmup)
        averaged = ema.update(state.ema, params, decay)
        metrics = {
            "teacher_loss": loss,
            "teacher_grad_norm": update["norm"],
            "updates_skipped": update["skipped"],
        }
        for i in range(loss_bins):
            limits = (f"{edge / loss_bins:.3g}" for edge in (i, i + 1))
            metrics[BY_RATIO + "_to_".join(limits)] = by_ratio[0, i] / by_ratio[1, i]
        return PretrainState(state.step + 1, params, averaged, opt_state), metrics

    return step
