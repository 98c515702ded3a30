"""Norms and GELU in bfloat16: as accurate as its rounding, and nothing in float32 is kept."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax import models
from dimo_jax.models import layers

# Of float64, by the standard library.
POINTS = np.linspace(-12, 12, 4801)
PHI = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in POINTS])
DENSITY = np.exp(-(POINTS**2) / 2) / math.sqrt(2 * math.pi)


def test_gelus_error_is_what_is_said():
    x = jnp.asarray(POINTS, jnp.float32)
    value = layers._gelu(x, layers._ERF)
    slope = jax.vmap(jax.grad(lambda x: layers._gelu(x, layers._ERF)))(x)
    assert np.abs(value - POINTS * PHI).max() < 5.5e-5
    assert np.abs(slope - (PHI + POINTS * DENSITY)).max() < 1.5e-4


def test_gelu_by_tanh_is_jaxs():
    x = jnp.asarray(POINTS, jnp.float32)
    ours = jax.vmap(jax.value_and_grad(lambda x: layers._gelu(x, layers._TANH)))(x)
    theirs = jax.vmap(jax.value_and_grad(jax.nn.gelu))(x)
    for found, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, right, atol=6e-6)


@pytest.mark.parametrize("approximate", [False, True])
def test_in_float32_gelu_is_jaxs_to_the_bit(approximate):
    x = jnp.asarray(POINTS, jnp.float32)
    ours = layers.gelu(x, approximate)
    np.testing.assert_array_equal(ours, jax.nn.gelu(x, approximate=approximate))


def pulled(function, ct, *given):
    y, pull = jax.vjp(function, *given)
    return y, *pull(ct)


@pytest.mark.parametrize("centred", [True, False])
def test_norms_are_flaxs(centred):
    keys = jax.random.split(jax.random.key(0), 4)
    x, ct = (jax.random.normal(key, (3, 5, 32)) for key in keys[:2])
    scale, bias = (jax.random.normal(key, (32,)) for key in keys[2:])
    x = 2 * x + 0.5
    if centred:
        given = (x, scale, bias)
        ours = lambda x, s, b: layers.normalized(x, s, b, 1e-5, True)  # noqa: E731
        module = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
        theirs = lambda x, s, b: module.apply({"params": {"scale": s, "bias": b}}, x)  # noqa: E731
    else:
        given = (x, scale)
        ours = lambda x, s: layers.normalized(x, s, None, 1e-5, False)  # noqa: E731
        theirs = lambda x, s: nn.RMSNorm(epsilon=1e-5).apply({"params": {"scale": s}}, x)  # noqa: E731
    for found, right in zip(pulled(ours, ct, *given), pulled(theirs, ct, *given), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)


def test_a_projection_in_bfloat16_has_flaxs_parameters_and_gradients():
    x, ct = (jax.random.normal(jax.random.key(n), (6, n)) for n in (8, 12))
    ours, theirs = layers.Projection((8, 3, 4), (3, 4)), nn.DenseGeneral((3, 4))
    variables = theirs.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(1), x, (2, 3)), variables)
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), (variables, x, ct))
    found, pull = jax.vjp(lambda v, x: ours.apply(v, x, (6,)), *low[:2])
    right, pull_right = jax.vjp(lambda v, x: theirs.apply(v, x).reshape(6, 12), variables, x)
    np.testing.assert_allclose(found.astype("f"), right, atol=0.03)
    for a, b in zip(*map(jax.tree.leaves, (pull(low[2]), pull_right(ct))), strict=True):
        np.testing.assert_allclose(a.astype("f"), b, atol=0.06)


def test_swiglu_is_its_formula():
    gate, x, ct = (jax.random.normal(key, (64,)) for key in jax.random.split(jax.random.key(0), 3))
    plain = lambda gate, x: gate * jax.nn.sigmoid(gate) * x  # noqa: E731
    for found, right in zip(
        pulled(layers._swiglu, ct, gate, x), pulled(plain, ct, gate, x), strict=True
    ):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_norms_have_flaxs_parameters_and_its_values_in_float32(name):
    x = jax.random.normal(jax.random.key(0), (3, 5, 32))
    options = {"epsilon": 1e-6} | ({"use_fast_variance": False} if name == "LayerNorm" else {})
    ours, theirs = getattr(layers, name)(**options), getattr(nn, name)(**options)
    variables = theirs.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(1), x), variables)
    np.testing.assert_array_equal(ours.apply(variables, x), theirs.apply(variables, x))
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), variables)
    found = ours.apply(low, x.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype("f"), theirs.apply(variables, x), atol=0.02)


SIZES = {"num_tokens": 64, "codebook_size": 30, "num_classes": 7, "width": 32, "depth": 2}
SIZES |= {"heads": 2, "mlp_dim": 64, "dropout": 0.0}


@pytest.mark.parametrize("name", models.TRANSFORMERS)
def test_a_backward_pass_keeps_no_activations_in_float32(name):
    extra = {"predict_mask_id": True} if name == "maskgit" else {}
    network = models.build({"name": name, **SIZES, **extra}, models.Compute(dtype="bfloat16"))
    params = jax.eval_shape(network.init, jax.random.key(0))
    tokens, labels = jnp.zeros((3, 64), jnp.int32), jnp.zeros((3,), jnp.int32)

    def kept(params):
        return jax.tree.leaves(jax.vjp(lambda p: network.apply(p, tokens, labels), params)[1])

    wide = [x for x in jax.eval_shape(kept, params) if x.dtype == jnp.float32]
    # A statistic of a position is float32; a channel of it is not.
    assert [x.shape for x in wide if x.size > 3 * 65] == []
