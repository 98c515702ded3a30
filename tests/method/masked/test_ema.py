import jax.numpy as jnp
import numpy as np

from dimo_jax.method.masked import ema


def test_decay_without_warmup_is_constant():
    for step in (0, 5, 10_000):
        assert float(ema.decay_at(step, 0.999, warmup=False)) == np.float32(0.999)


def test_decay_warms_up_to_its_limit():
    # (1 + n) / (10 + n) by hand; 0.99 is reached at n = 890.
    expected = {0: 0.1, 1: 2 / 11, 8: 0.5, 890: 0.99, 891: 0.99, 10**6: 0.99}
    for step, decay in expected.items():
        np.testing.assert_allclose(float(ema.decay_at(step, 0.99, warmup=True)), decay, rtol=1e-6)


def test_update_is_the_weighted_mean():
    average = {"a": jnp.array([1.0, 2.0]), "b": {"c": jnp.array(0.0)}}
    params = {"a": jnp.array([3.0, -2.0]), "b": {"c": jnp.array(4.0)}}
    moved = ema.update(average, params, 0.75)
    np.testing.assert_allclose(moved["a"], [1.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(moved["b"]["c"], 1.0, rtol=1e-6)


def test_update_keeps_equal_leaves_bit_for_bit_and_dtypes():
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)
    assert (ema.update(leaf, leaf, 0.999) == leaf).all()
    half = leaf.astype(jnp.bfloat16)
    assert ema.update(half, leaf, jnp.float32(0.9)).dtype == jnp.bfloat16
