import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from dimo_jax.method.dimo import divergences

P = jax.random.normal(jax.random.key(0), (5, 7)) * 2
Q = jax.random.normal(jax.random.key(1), (5, 7)) * 2

# f of table 4, as plain functions of u: they share nothing with the code under test.
GENERATORS = {
    ("forward_kl", 0.0): lambda u: u * jnp.log(u),
    ("reverse_kl", 0.0): lambda u: -jnp.log(u),
    ("jeffrey", 0.3): lambda u: (0.7 * u - 0.3) * jnp.log(u),
    ("jeffrey", -0.2): lambda u: (1.2 * u + 0.2) * jnp.log(u),
    ("jensen_shannon", 0.0): lambda u: -(u + 1) * jnp.log((1 + u) / 2) + u * jnp.log(u),
    ("squared_hellinger", 0.0): lambda u: (jnp.sqrt(u) - 1) ** 2,
    ("alpha", 0.5): lambda u: (u**0.5 - 0.5 * u - 0.5) / -0.25,
    ("alpha", 2.0): lambda u: (u**-1.0 + u - 2) / 2,
}
CASES = list(GENERATORS)


def scalar(f, p_logits, q_logits):
    p, q = jax.nn.softmax(p_logits), jax.nn.softmax(q_logits)
    return (q * f(p / q)).sum(-1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_is_the_sum_of_q_f(case):
    found = divergences.value(divergences.by_name(*case), P, Q)
    np.testing.assert_allclose(found, scalar(GENERATORS[case], P, Q), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_closed_form_is_jax_grad_of_the_scalar(case):
    expected = jax.grad(lambda q: scalar(GENERATORS[case], P, q).sum())(Q)
    found = divergences.logit_gradient(divergences.by_name(*case), P, Q)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_closed_form_is_jax_grad_of_the_own_value(case):
    divergence = divergences.by_name(*case)
    expected = jax.grad(lambda q: divergences.value(divergence, P, q).sum())(Q)
    found = divergences.logit_gradient(divergence, P, Q)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_generator_function_serves(case):
    divergence = divergences.from_generator(GENERATORS[case])
    known = divergences.by_name(*case)
    np.testing.assert_allclose(
        divergences.value(divergence, P, Q), divergences.value(known, P, Q), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(
        divergences.logit_gradient(divergence, P, Q),
        divergences.logit_gradient(known, P, Q),
        rtol=1e-3,
        atol=2e-5,
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_own_jacobian_is_the_generators_softmax(case):
    # d/dz of sum_j softmax(z)_j h_j with h = dD/dq constant.
    f, z = GENERATORS[case], jax.random.normal(jax.random.key(2), (5, 7))
    u = jax.nn.softmax(P) / jax.nn.softmax(Q)
    h = f(u) - u * jax.vmap(jax.vmap(jax.grad(f)))(u)
    expected = jax.grad(lambda z: (jax.nn.softmax(z) * h).sum())(z)
    found = divergences.logit_gradient(divergences.by_name(*case), P, Q, z)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


def test_forward_kl_is_q_minus_p_and_reverse_kl_the_papers_form():
    p, q = softmax(np.asarray(P, np.float64), -1), softmax(np.asarray(Q, np.float64), -1)
    forward = divergences.logit_gradient(divergences.forward_kl(), P, Q)
    np.testing.assert_allclose(forward, q - p, atol=1e-6)
    log_ratio = np.log(q / p)
    expected = q * (log_ratio - (q * log_ratio).sum(-1, keepdims=True))
    reverse = divergences.logit_gradient(divergences.reverse_kl(), P, Q)
    np.testing.assert_allclose(reverse, expected, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_finite_at_logits_of_1e4(case):
    high = jnp.array([[1e4, -1e4, 0.0, 3.0], [0.0, 1e4, -1e4, 3.0], [1e4, 1e4, -1e4, -1e4]])
    pairs = [(a, b) for a in (high, high[::-1], jnp.zeros((3, 4))) for b in (high, high[::-1])]
    for divergence in (
        divergences.by_name(*case),
        divergences.from_generator(GENERATORS[case]),
    ):
        for p, q in [*pairs, *((b, a) for a, b in pairs)]:
            assert np.isfinite(divergences.value(divergence, p, q)).all()
            gradient = np.asarray(divergences.logit_gradient(divergence, p, q))
            assert np.isfinite(gradient).all()
            assert np.isfinite(divergences.logit_gradient(divergence, p, q, p)).all()


def test_extreme_forward_kl_still_has_its_gradient():
    # Where u overflows float32, the gradient is still q - p.
    p, q = jnp.array([[0.0, -1e4]]), jnp.array([[-1e4, 0.0]])
    for divergence in (
        divergences.forward_kl(),
        divergences.from_generator(GENERATORS["forward_kl", 0.0]),
    ):
        found = divergences.logit_gradient(divergence, p, q)
        np.testing.assert_allclose(found, [[-1.0, 1.0]], atol=5e-6)  # exp(40) in float32
    assert float(divergences.value(divergences.forward_kl(), p, q)[0]) == pytest.approx(1e4)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_zero_at_equality_and_no_mass_moved(case):
    divergence = divergences.by_name(*case)
    np.testing.assert_allclose(divergences.value(divergence, P, P + 3.0), 0, atol=1e-5)
    np.testing.assert_allclose(divergences.logit_gradient(divergence, P, P), 0, atol=1e-6)
    gradient = divergences.logit_gradient(divergence, P, Q)
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-4)


def test_bfloat16_logits_are_computed_in_float32():
    p, q = P.astype(jnp.bfloat16), Q.astype(jnp.bfloat16)
    found = divergences.logit_gradient(divergences.reverse_kl(), p, q)
    expected = divergences.logit_gradient(
        divergences.reverse_kl(), p.astype(jnp.float32), q.astype(jnp.float32)
    )
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)


def test_shapes_must_agree():
    # In a process of its own: here the signatures themselves are checked, and say it first.
    program = """
import jax.numpy as jnp
from dimo_jax.method.dimo import divergences
divergences.value(divergences.forward_kl(), jnp.zeros((5, 7)), jnp.zeros((5, 6)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "teacher logits (5, 7) and auxiliary logits (5, 6) differ" in done.stderr


def test_alpha_has_no_limits():
    for a in (0.0, 1.0):
        with pytest.raises(ValueError, match="limit"):
            divergences.alpha(a)
