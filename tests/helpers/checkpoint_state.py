"""For tests of checkpoints: a training state, and managers that are closed at the end."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dimo_jax.training.checkpoints import Checkpoints


class State(flax.struct.PyTreeNode):
    step: jax.Array
    params: Any
    opt: Any


def make_state(step=3, width=4):
    params = {
        "kernel": jax.random.normal(jax.random.key(step), (width, width)),
        "half": jnp.arange(5, dtype=jnp.bfloat16) / 3,
        "frozen": jnp.ones(2),
    }
    labels = {"kernel": "trained", "half": "trained", "frozen": "frozen"}
    tx = optax.partition({"trained": optax.adam(1e-3), "frozen": optax.set_to_zero()}, labels)
    return State(step=jnp.int32(step), params=params, opt=tx.init(params))


def opening(directory):
    """A function that opens checkpoints; at the end all are closed. For a fixture."""
    managers = []

    def open_checkpoints(name="ck", keep=3, **options):
        managers.append(Checkpoints(directory / name, keep, **options))
        return managers[-1]

    yield open_checkpoints
    for manager in managers:
        manager.close()


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
