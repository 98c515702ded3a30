"""How a network is computed changes nothing in what it computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax import models
from dimo_jax.common import trees

SIZES = {"num_tokens": 16, "codebook_size": 30, "num_classes": 7, "width": 16, "depth": 3}
SIZES |= {"heads": 2, "mlp_dim": 32}
TOKENS = jax.random.randint(jax.random.key(1), (2, 16), 0, 31)
LABELS = jnp.array([0, 3])


def config(name, dropout=0.0):
    extra = {"predict_mask_id": True} if name == "maskgit" else {}
    return {"name": name, **SIZES, "dropout": dropout, **extra}


def random(shapes):
    leaves, tree = jax.tree.flatten(shapes)
    draw = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [draw.normal(0, 0.3, x.shape).astype("f") for x in leaves])


def value_and_gradient(name, compute, dropout_key=None):
    network = models.build(config(name, 0.0 if dropout_key is None else 0.5), compute)
    params = random(jax.eval_shape(network.init, jax.random.key(0)))

    def loss(p):
        return (network.apply(p, TOKENS, LABELS, dropout_key=dropout_key) ** 2).mean()

    text = str(jax.make_jaxpr(jax.grad(loss))(params))
    return *jax.jit(jax.value_and_grad(loss))(params), text


@pytest.mark.slow
@pytest.mark.parametrize("name", models.TRANSFORMERS)
def test_remat_and_scan_change_neither_logits_nor_gradients(name):
    value, gradient, text = value_and_gradient(name, models.Compute())
    assert "remat" not in text and "scan" not in text
    for remat, scan in (("full", True), ("dots", False)):
        compute = models.Compute(remat=remat, scan_layers=scan)
        found, other, text = value_and_gradient(name, compute)
        assert ("checkpoint" in text or "remat" in text) and (" scan[" in text) == scan
        np.testing.assert_allclose(found, value, rtol=1e-6)
        for leaf, expected in trees.named_leaves(gradient).items():
            got = trees.named_leaves(other)[leaf]
            np.testing.assert_allclose(got, expected, atol=2e-6 * np.abs(expected).max() + 1e-9)


def test_barriers_between_blocks_are_for_training_on_cpus_alone():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("data",))
    _, _, training = value_and_gradient("maskgit", models.Compute(mesh=mesh))
    _, _, exported = value_and_gradient("maskgit", models.Compute())
    assert "optimization_barrier" in training and "optimization_barrier" not in exported


@pytest.mark.slow
def test_every_mode_draws_the_same_dropout():
    modes = [models.Compute(), models.Compute(remat="full"), models.Compute(scan_layers=True)]
    values = [float(value_and_gradient("maskgit", c, jax.random.key(0))[0]) for c in modes]
    np.testing.assert_allclose(values, values[0], rtol=1e-6)
    other = value_and_gradient("maskgit", modes[2], jax.random.key(1))[0]
    assert abs(float(other) - values[0]) > 1e-4 * values[0]


def test_parameters_are_the_same_tree_in_every_mode():
    plain, scanned = (
        jax.eval_shape(models.build(config("halton"), compute).init, jax.random.key(0))
        for compute in (models.Compute(), models.Compute(remat="full", scan_layers=True))
    )
    assert trees.differences(plain, scanned) == []
