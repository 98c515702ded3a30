import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from dimo_jax.method.masked import losses

LOGITS = jax.random.normal(jax.random.key(0), (2, 3, 5))
TARGETS = jnp.array([[0, 4, 2], [1, 1, 3]])
MASK = jnp.array([[True, True, False], [False, False, True]])


def expected_cross_entropy(smoothing):
    log_q = log_softmax(np.asarray(LOGITS, np.float64), -1)
    target = np.eye(5)[np.asarray(TARGETS)] * (1 - smoothing) + smoothing / 5
    return -(target * log_q).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_cross_entropy_with_label_smoothing(smoothing):
    found = losses.token_cross_entropy(LOGITS, TARGETS, smoothing)
    np.testing.assert_allclose(found, expected_cross_entropy(smoothing), rtol=1e-5)


def test_soft_targets_are_mixed_in_by_their_share():
    soft = jax.nn.softmax(jax.random.normal(jax.random.key(1), (2, 3, 5)))
    log_q = log_softmax(np.asarray(LOGITS, np.float64), -1)
    both = 0.7 * expected_cross_entropy(0.0) - 0.3 * (np.asarray(soft) * log_q).sum(-1)
    found = losses.token_cross_entropy(LOGITS, TARGETS, 0.0, 0.3, soft)
    np.testing.assert_allclose(found, both, rtol=1e-5)


def test_soft_targets_alone_have_the_gradient_of_the_kl():
    soft = jax.nn.softmax(jax.random.normal(jax.random.key(1), (2, 3, 5)))
    found = jax.grad(lambda z: losses.token_cross_entropy(z, TARGETS, 0.0, 1.0, soft).sum())(LOGITS)
    expected = softmax(np.asarray(LOGITS), -1) - np.asarray(soft)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sum", [[1 / 2, 1 / 2, 0], [0, 0, 1 / 2]]),
        ("mean_masked", [[1 / 4, 1 / 4, 0], [0, 0, 1 / 2]]),
        ("mean_batch", [[1 / 3, 1 / 3, 0], [0, 0, 1 / 3]]),
    ],
)
def test_reductions(reduction, expected):
    np.testing.assert_allclose(losses.token_weights(MASK, reduction), expected, rtol=1e-6)


def test_a_batch_without_masks_weighs_nothing():
    for reduction in losses.REDUCTIONS:
        found = losses.token_weights(jnp.zeros((2, 3), bool), reduction)
        np.testing.assert_array_equal(found, np.zeros((2, 3)))


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="mean_masked"):
        losses.token_weights(MASK, "average")
