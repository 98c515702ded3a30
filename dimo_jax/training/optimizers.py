"""Adam or Muon with a learning-rate schedule, clipping and frozen leaves."""

import difflib
import math
import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array

from dimo_jax.common import trees
from dimo_jax.common.errors import InputError

NAMES = ("adam", "muon")
SCHEDULES = ("constant", "cosine", "linear")

# Muon's update has orthonormal rows or columns; scaled to this root mean square it moves a matrix
# about as far as Adam does, so that one learning rate serves both (Liu et al., arXiv 2502.16982).
_MUON_RMS = 0.2


def learning_rate_schedule(
    learning_rate: float, schedule: str, warmup_steps: int, num_steps: int
) -> optax.Schedule:
    """Learning rate as a function of the number of updates made before.

    Args:
        learning_rate: the peak.
        schedule: "constant", "cosine" or "linear"; the last two decay to 0 at `num_steps`.
        warmup_steps: update n < warmup_steps uses (n + 1) / warmup_steps of the peak, so that no
            update is wasted at a rate of 0; 0 is no warm-up.
        num_steps: length of the run in updates, warm-up included.

    Returns:
        step -> float32 scalar.

    Raises:
        InputError: for an unknown schedule, or a warm-up that is longer than the run.
    """
    if schedule not in SCHEDULES:
        raise InputError(f"schedule {schedule!r} is unknown; choose one of {', '.join(SCHEDULES)}")
    if not 0 <= warmup_steps <= num_steps:
        raise InputError(f"warmup_steps is {warmup_steps}; it must lie in 0..num_steps={num_steps}")

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))
        done = jnp.clip((step - warmup_steps) / max(num_steps - warmup_steps, 1), 0.0, 1.0)
        if schedule == "cosine":
            decay = 0.5 * (1 + jnp.cos(jnp.pi * done))
        elif schedule == "linear":
            decay = 1 - done
        else:
            decay = jnp.ones_like(done)
        return learning_rate * warm * decay

    return rate


def build(
    *,
    name: str,
    learning_rate: float,
    schedule: str,
    warmup_steps: int,
    num_steps: int,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    frozen: Sequence[str],
    params: Any,
    where: str = "",
) -> optax.GradientTransformation:
    """Return the optimizer of a parameter tree, some of whose leaves may be frozen.

    "muon" orthogonalizes the update of every kernel; embeddings, norms and biases follow Adam with
    Nesterov momentum at the same learning rate.

    Frozen leaves have no moments, get zero updates whatever their gradient, and do not count in
    the norm that is clipped.

    Args:
        name: "adam" or "muon".
        learning_rate: see `learning_rate_schedule`, as for the next three.
        schedule: "constant", "cosine" or "linear".
        warmup_steps: updates of linear warm-up.
        num_steps: length of the run in updates.
        beta1: decay of the first moment, which is Muon's momentum too.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay, scaled by the learning rate, of every trained leaf; with
            "adam" it makes AdamW.
        clip_norm: largest global norm of the trained leaves' gradient; 0 clips nothing.
        frozen: regular expressions searched in path names such as "token_embedding/embedding".
        params: the parameter tree, or its shapes.
        where: what stands before a field's name in messages, e.g. "config.pretrain.optimizer.".

    Returns:
        The transformation; its `update` needs `params`.

    Raises:
        InputError: for an unknown name; for a bad schedule; for an expression that is invalid or
            matches no leaf (the nearest names are listed); where nothing is left to train.
    """
    rate = learning_rate_schedule(learning_rate, schedule, warmup_steps, num_steps)
    steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    if name == "muon":
        muon = optax.contrib.muon(
            rate,
            beta=beta1,
            eps=eps,
            weight_decay=weight_decay,
            adam_b1=beta1,
            adam_b2=beta2,
            adam_weight_decay=weight_decay,
            muon_weight_dimension_numbers=_matrix_axes,
            consistent_rms=_MUON_RMS,
        )
        steps.append(_on_stacked_kernels(muon))
    elif name != "adam":
        raise InputError(f"optimizer {name!r} is unknown; choose one of {', '.join(NAMES)}")
    elif weight_decay:
        steps.append(optax.adamw(rate, beta1, beta2, eps, weight_decay=weight_decay))
    else:
        steps.append(optax.adam(rate, beta1, beta2, eps))
    trained = optax.chain(*steps)
    _check_frozen(frozen, list(trees.named_leaves(params)), where)
    if not frozen:
        return trained
    labels = trees.map_named(
        lambda name, _: "frozen" if trees.matches(frozen, name) else "trained", params
    )
    # The clipping stands inside the partition: outside, frozen gradients would count in its norm.
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def _on_stacked_kernels(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on a tree in which kernels of one size are one leaf, [number, rows, columns].

    Orthogonalizing 21 matrices one by one took a seventh of a small network's step on a CPU, and a
    third of the time for compiling it.
    """

    def init(params: Any) -> Any:
        return inner.init(_stack(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        stacked, state = inner.update(_stack(updates), state, _stack(params))
        return _unstack(stacked, updates), state

    return optax.GradientTransformation(init, update)


def _groups(tree: Any) -> dict[str, list[tuple[str, Any]]]:
    """(name, leaf) of a tree by the name of the leaf they share: kernels of a size, or itself."""
    groups: dict[str, list[tuple[str, Any]]] = {}
    for name, leaf in trees.named_leaves(tree).items():
        group = name
        if name.endswith("kernel") and leaf.ndim > 1:
            # Attention's kernels have three axes, with the heads on the side away from the width.
            inputs = 1 if leaf.ndim == 3 and not name.endswith("out/kernel") else leaf.ndim - 1
            rows, columns = math.prod(leaf.shape[:inputs]), math.prod(leaf.shape[inputs:])
            group = f"kernels_{rows}x{columns}"
        groups.setdefault(group, []).append((name, leaf))
    return groups


def _stack(tree: Any) -> dict[str, Array]:
    def join(group: str, leaves: list[Array]) -> Array:
        if not group.startswith("kernels_"):
            return leaves[0]
        rows, columns = map(int, group.removeprefix("kernels_").split("x"))
        return jnp.stack([leaf.reshape(rows, columns) for leaf in leaves])

    return {group: join(group, [x for _, x in found]) for group, found in _groups(tree).items()}


def _unstack(stacked: Any, like: Any) -> Any:
    leaves = {}
    for group, found in _groups(like).items():
        parts = stacked[group] if group.startswith("kernels_") else [stacked[group]]
        leaves |= {
            name: part.reshape(leaf.shape) for (name, leaf), part in zip(found, parts, strict=True)
        }
    return trees.map_named(lambda name, _: leaves[name], like)


def _matrix_axes(stacked: Any) -> dict[str, Any]:
    """Rows and columns of the stacked kernels, for Muon; None for what follows Adam."""
    axes = optax.contrib.MuonDimensionNumbers(1, 2)
    return {name: axes if name.startswith("kernels_") else None for name in stacked}


def _check_frozen(frozen: Sequence[str], names: list[str], where: str) -> None:
    """Raise InputError unless each expression matches a leaf and one leaf is left unmatched."""
    for pattern in frozen:
        try:
            found = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise InputError(
                f"{where}frozen: {pattern!r} is not a regular expression ({error})"
            ) from error
        if not found:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise InputError(
                f"{where}frozen: {pattern!r} matches no parameter; the nearest names are "
                f"{', '.join(near)}"
            )
    if names and all(trees.matches(frozen, name) for name in names):
        raise InputError(
            f"{where}frozen: {', '.join(frozen)} match every parameter; leave one to be trained"
        )
