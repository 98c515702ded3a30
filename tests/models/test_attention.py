"""Attention is the formula's, however it is computed."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax.common.errors import InputError
from dimo_jax.models import attention, attention_kernel
from dimo_jax.models.attention import SelfAttention, accelerator, attention_fn
from dimo_jax.models.network import Compute

XLA = attention_fn(Compute())


def qkv(dtype="float32"):
    keys = jax.random.split(jax.random.key(2), 3)
    return [jax.random.normal(key, (2, 5, 3, 4), dtype) for key in keys]


def test_attention_is_flaxs():
    for scale in (1.0, 30.0):
        arguments = [scale * x for x in qkv()]
        ours, theirs = (
            jax.value_and_grad(lambda *x, f=f: (f(*x) ** 3).sum(), argnums=(0, 1, 2))(*arguments)
            for f in (XLA, nn.dot_product_attention)
        )
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_attentions_softmax_is_float32_in_bfloat16():
    text = str(jax.make_jaxpr(XLA)(*qkv("bfloat16")))
    assert "exp" in text and all("f32" in x for x in text.splitlines() if " exp " in x)
    assert XLA(*qkv("bfloat16")).dtype == jnp.bfloat16


def test_attentions_dropout_keeps_the_mean():
    query, key, value = qkv()
    plain = XLA(query, key, value)
    dropped = jax.vmap(lambda k: XLA(query, key, value, k, 0.5, deterministic=False))(
        jax.random.split(jax.random.key(0), 2000)
    )
    assert np.abs(dropped[0] - plain).max() > 0.1
    np.testing.assert_allclose(dropped.mean(0), plain, atol=0.15)


def test_self_attention_is_flaxs_with_the_same_parameters():
    x = jax.random.normal(jax.random.key(0), (2, 5, 12))
    ours = SelfAttention(3, 0.5, XLA)
    theirs = nn.MultiHeadDotProductAttention(num_heads=3, dropout_rate=0.5)
    ours, theirs = (
        (m.init(jax.random.key(1), x, deterministic=True), m.apply) for m in (ours, theirs)
    )
    jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])
    given = {"params": jax.tree.map(lambda p: p + 0.1, ours[0]["params"])}
    for on in (True, False):
        options = {"deterministic": on, "rngs": {"dropout": jax.random.key(2)}}
        found, expected = (apply(given, x, **options) for _, apply in (ours, theirs))
        # With dropout the two draw other masks: flax has the heads in another place.
        if on:
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        else:
            assert np.abs(found - apply_plain(ours, given, x)).max() > 0.01


def apply_plain(ours, given, x):
    return ours[1](given, x, deterministic=True)


# Two groups of heads; heads that fill no register; rows in two pieces; one position.
@pytest.mark.parametrize(
    "shape", [(1, 257, 16, 48), (2, 40, 3, 24), (1, 800, 1, 128), (1, 1, 2, 8)]
)
def test_the_kernel_is_the_formula_forwards_and_backwards(shape):
    *given, ct = (jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(3), 4))
    y, pull = jax.vjp(lambda *x: attention_kernel.attend(*x, True), *given)
    expected, pull_expected = jax.vjp(XLA, *given)
    np.testing.assert_allclose(y, expected, atol=2e-6)
    for found, right in zip(pull(ct), pull_expected(ct), strict=True):
        np.testing.assert_allclose(found, right, atol=2e-6 * np.abs(right).max() + 1e-7)


def device(platform, capability=None, kind=""):
    known = {"platform": platform, "device_kind": kind}
    known |= {} if capability is None else {"compute_capability": capability}
    return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(**known)]), size=1)


@pytest.mark.parametrize(
    ("mesh", "name"),
    [
        (device("tpu"), "tpu"),
        (device("gpu", "9.0"), "nvidia"),
        (device("gpu", "7.5"), ""),
        (device("gpu", "gfx90a"), ""),
        (device("cpu"), ""),
    ],
)
def test_which_accelerator(mesh, name):
    assert accelerator(mesh) == name


NVIDIA, TPU = device("gpu", "9.0", "NVIDIA H100"), device("tpu", kind="TPU v5e")


@pytest.mark.parametrize(
    ("mesh", "shape", "dtype", "dropout", "name"),
    [
        (NVIDIA, (2, 5, 3, 8), "bfloat16", 0.0, "cudnn"),
        (NVIDIA, (2, 5, 3, 8), "float32", 0.0, "xla"),
        (NVIDIA, (2, 5, 3, 8), "bfloat16", 0.1, "xla"),
        (NVIDIA, (2, 5, 3, 12), "bfloat16", 0.0, "xla"),
        (NVIDIA, (2, 5, 3, 136), "bfloat16", 0.0, "xla"),
        (TPU, (2, 5, 3, 12), "bfloat16", 0.0, "pallas"),
        (TPU, (2, 5, 3, 12), "float32", 0.0, "xla"),
        (TPU, (2, 5, 3, 12), "bfloat16", 0.1, "xla"),
        (device("cpu"), (2, 5, 3, 8), "bfloat16", 0.0, "xla"),
    ],
)
def test_auto_takes_the_kernel_that_applies(mesh, shape, dtype, dropout, name):
    compute = Compute(attention="auto", mesh=mesh)
    assert attention.chosen(compute, jnp.zeros(shape, dtype), dropout) == name


def test_a_batch_that_devices_do_not_share_evenly_has_no_kernel():
    two = types.SimpleNamespace(devices=TPU.devices, size=2)
    query = jnp.zeros((3, 5, 3, 8), "bfloat16")
    assert attention.chosen(Compute(attention="auto", mesh=two), query, 0.0) == "xla"
    with pytest.raises(InputError, match="found a batch of 3 on 2 devices"):
        attention.chosen(Compute(attention="pallas", mesh=two), query, 0.0)


@pytest.mark.parametrize("name", ["cudnn", "pallas"])
@pytest.mark.parametrize(
    ("dtype", "options", "words"),
    [
        ("bfloat16", {}, "found a device of the kind cpu"),
        ("float32", {}, "cpu, config.compute_dtype=float32"),
        ("bfloat16", {"dropout_rate": 0.1, "deterministic": False}, "cpu, dropout"),
    ],
)
def test_a_kernel_that_is_named_says_what_it_lacks(name, dtype, options, words):
    with pytest.raises(InputError, match=words):
        attention_fn(Compute(attention=name))(*qkv(dtype), **options)


def test_no_probabilities_in_float32_are_kept():
    given = [jax.ShapeDtypeStruct((2, 64, 3, 4), jnp.bfloat16)] * 3
    kept = jax.eval_shape(lambda *x: jax.tree.leaves(jax.vjp(XLA, *x)[1]), *given)
    assert any(x.shape == (2, 3, 64, 64) for x in kept)
    assert all(x.dtype == jnp.bfloat16 for x in kept if x.ndim == 4)
