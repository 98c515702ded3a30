import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax.common import rng
from dimo_jax.method.masked import guidance

LOGITS = jnp.array([[2.0, 0.0, 1.0, -1.0], [0.5, 0.5, 0.1, 3.0]])


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guided_is_u_plus_s_times_difference(scale):
    c = jax.random.normal(jax.random.key(0), (2, 3, 4))
    u = jax.random.normal(jax.random.key(1), (2, 3, 4))
    expected = np.asarray(u) + scale * (np.asarray(c) - np.asarray(u))
    np.testing.assert_allclose(guidance.guided(c, u, scale), expected, atol=1e-6)


def test_guided_takes_one_scale_for_each_example():
    c, u = jnp.ones((2, 1, 1)), jnp.zeros((2, 1, 1))
    found = guidance.guided(c, u, jnp.array([2.0, 5.0]))
    np.testing.assert_array_equal(found[:, 0, 0], [2.0, 5.0])


def test_adaptive_scale_grows_with_the_mask_ratio():
    found = guidance.adaptive_scale(3.0, jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(found, [1.0, 2.0, 3.0])


def test_top_k_keeps_the_k_largest():
    kept = np.isfinite(np.asarray(guidance.filter_top_k(LOGITS, 2)))
    np.testing.assert_array_equal(kept, [[1, 0, 1, 0], [1, 1, 0, 1]])  # a tie is kept whole
    for everything in (0, 4, 9):
        np.testing.assert_array_equal(guidance.filter_top_k(LOGITS, everything), LOGITS)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    shuffled = jnp.log(jnp.asarray(probs[[2, 0, 3, 1]], jnp.float32))
    for p, expected in (
        (0.4, {0.5}),
        (0.6, {0.5, 0.3}),
        (0.9, {0.5, 0.3, 0.15}),
        (1.0, set(probs)),
    ):
        kept = np.isfinite(np.asarray(guidance.filter_top_p(shuffled, p)))
        assert set(probs[[2, 0, 3, 1]][kept]) == expected


def test_lowered_by_a_constant_stays_finite():
    for found in (
        guidance.filter_top_k(LOGITS, 1, 2.0),
        guidance.filter_top_p(LOGITS, 0.1, 2.0),
    ):
        np.testing.assert_allclose(found[0], [2.0, -2.0, -1.0, -3.0])


def test_temperature_divides_before_the_filters():
    found = guidance.shape_logits(LOGITS, 2.0, top_k=1)
    np.testing.assert_allclose(found[0], [1.0, -np.inf, -np.inf, -np.inf])
    # At a low temperature one token holds the mass that four hold at 1.
    kept = np.isfinite(np.asarray(guidance.shape_logits(LOGITS, 0.1, top_p=0.9)))
    np.testing.assert_array_equal(kept[0], [1, 0, 0, 0])


def test_conditions_are_dropped_at_the_rate_and_whole():
    n = 4000
    keys = rng.example_keys(rng.stream_key(0, "drop"), jnp.arange(n))
    condition = {"a": jnp.ones((n, 3)), "b": jnp.ones((n,))}
    null = {"a": jnp.zeros((n, 3)), "b": jnp.zeros((n,))}
    found = guidance.drop_condition(keys, condition, null, 0.1)
    assert abs(float(found["b"].mean()) - 0.9) < 0.02
    np.testing.assert_array_equal(found["a"], np.repeat(found["b"][:, None], 3, 1))
    assert guidance.drop_condition(keys, condition, null, 0.0) is condition
