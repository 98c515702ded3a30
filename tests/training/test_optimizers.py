import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dimo_jax.common.errors import InputError
from dimo_jax.training import optimizers

PLAIN = dict(
    name="adam",
    learning_rate=0.1,
    schedule="constant",
    warmup_steps=0,
    num_steps=10,
    beta1=0.9,
    beta2=0.99,
    eps=1e-8,
    weight_decay=0.0,
    clip_norm=0.0,
    frozen=(),
)
PARAMS = {
    "embedding": {"table": jnp.array([1.0, -2.0])},
    "dense": {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([0.5])},
}
GRADS = {
    "embedding": {"table": jnp.array([300.0, 400.0])},
    "dense": {"kernel": jnp.array([3.0, 0.0]), "bias": jnp.array([4.0])},
}


def train(params, grads, num_updates=1, **options):
    tx = optimizers.build(**PLAIN | options, params=params)
    state = tx.init(params)
    for _ in range(num_updates):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def adam_numpy(p, g, num_updates, rate, b1, b2, eps, decay):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2) in float64."""
    p, m, v = np.asarray(p, np.float64), 0.0, 0.0
    for n in range(1, num_updates + 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        p = p - rate * (m / (1 - b1**n) / (np.sqrt(v / (1 - b2**n)) + eps) + decay * p)
    return p


def nadam_numpy(p, g, num_updates, rate, b1, b2, eps):
    """Adam with Nesterov momentum (Dozat 2016), for a gradient that stays the same."""
    p, m, v = np.asarray(p, np.float64), 0.0, 0.0
    for n in range(1, num_updates + 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        ahead = b1 * m / (1 - b1 ** (n + 1)) + (1 - b1) * g / (1 - b1**n)
        p = p - rate * ahead / (np.sqrt(v / (1 - b2**n)) + eps)
    return p


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.0, 0.5)])
def test_is_adam_with_decoupled_decay(weight_decay, betas):
    options = dict(weight_decay=weight_decay, beta1=betas[0], beta2=betas[1], eps=0.2)
    params, _ = train(PARAMS, GRADS, num_updates=3, **options)
    expected = adam_numpy(
        PARAMS["dense"]["kernel"], np.array([3.0, 0.0]), 3, 0.1, *betas, 0.2, weight_decay
    )
    np.testing.assert_allclose(params["dense"]["kernel"], expected, rtol=1e-5)


def test_frozen_leaves_stay_and_have_no_moments():
    params, state = train(PARAMS, GRADS, 3, frozen=("^embedding/",), weight_decay=0.5)
    np.testing.assert_array_equal(params["embedding"]["table"], PARAMS["embedding"]["table"])
    assert (params["dense"]["kernel"] != PARAMS["dense"]["kernel"]).all()
    # Two moments of kernel [2] and bias [1], and the counters; nothing of table [2].
    moments = [x for x in jax.tree.leaves(state) if x.ndim]
    assert sorted(x.size for x in moments) == [1, 1, 2, 2]


def test_clipping_counts_the_trained_leaves_only():
    # An eps this large makes the update proportional to the gradient, so that clipping shows.
    options = dict(frozen=("embedding",), eps=1e6, beta1=0.0, learning_rate=1e5)
    free, _ = train(PARAMS, GRADS, **options)
    loose, _ = train(PARAMS, GRADS, clip_norm=6.0, **options)  # the trained norm is 5
    tight, _ = train(PARAMS, GRADS, clip_norm=1.0, **options)
    moved = {
        name: np.asarray(p["dense"]["bias"] - PARAMS["dense"]["bias"], np.float64)
        for name, p in (("free", free), ("loose", loose), ("tight", tight))
    }
    assert moved["loose"] == moved["free"] != 0
    np.testing.assert_allclose(moved["tight"] * 5, moved["free"], rtol=1e-3)


def test_schedules_against_optax():
    steps = np.arange(12)

    def values(schedule, warmup_steps, num_steps=10):
        rate = optimizers.learning_rate_schedule(0.3, schedule, warmup_steps, num_steps)
        return [float(rate(n)) for n in steps]

    def peer(schedule):
        return [float(schedule(n)) for n in steps]

    def close(a, b):
        np.testing.assert_allclose(a, b, atol=1e-7)

    close(values("constant", 0), [0.3] * 12)
    close(values("cosine", 0), peer(optax.cosine_decay_schedule(0.3, 10)))
    close(values("linear", 0), peer(optax.linear_schedule(0.3, 0.0, 10)))
    close(values("constant", 4), peer(optax.linear_schedule(0.075, 0.3, 3)))
    warm_cosine = optax.join_schedules(
        [optax.linear_schedule(0.1, 0.3, 2), optax.cosine_decay_schedule(0.3, 7)], [3]
    )
    close(values("cosine", 3), peer(warm_cosine))


def test_the_schedule_reaches_the_updates():
    ones = {"x": jnp.zeros(1)}
    once, _ = train(ones, {"x": jnp.ones(1)}, 1, warmup_steps=4)
    thrice, _ = train(ones, {"x": jnp.ones(1)}, 3, warmup_steps=4)
    # With a constant gradient each of Adam's updates is the learning rate itself.
    np.testing.assert_allclose(once["x"], [-0.1 * 0.25], rtol=1e-4)
    np.testing.assert_allclose(thrice["x"], [-0.1 * (0.25 + 0.5 + 0.75)], rtol=1e-4)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(frozen=("embeding/table",)), ["matches no parameter", "embedding/table"]),
        (dict(frozen=("dense(",)), ["not a regular expression"]),
        (dict(frozen=("dense", "embedding")), ["every parameter"]),
        (dict(schedule="cosin"), ["cosin", "cosine"]),
        (dict(warmup_steps=11), ["warmup_steps is 11"]),
    ],
)
def test_bad_options_are_explained(options, words):
    with pytest.raises(InputError) as caught:
        optimizers.build(**PLAIN | options, params=PARAMS)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("path", "shape", "inputs"),
    [
        (("mlp", "kernel"), (12, 20), 12),
        (("attention", "query", "kernel"), (12, 4, 5), 12),
        (("attention", "out", "kernel"), (4, 5, 12), 20),
        (("conv", "kernel"), (3, 2, 4, 9), 24),
    ],
)
def test_muon_moves_a_kernel_by_the_orthogonal_factor_of_its_gradient(path, shape, inputs):
    gradient = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tree = jnp.asarray(gradient)
    for name in reversed(path):
        tree = {name: tree}
    start = jax.tree.map(jnp.zeros_like, tree)
    moved = jax.tree.leaves(train(start, tree, name="muon")[0])[0]
    u, _, vt = np.linalg.svd(gradient.reshape(inputs, -1), full_matrices=False)
    found = u.T @ np.reshape(moved, (inputs, -1)) @ vt.T
    # -rate * 0.2 * sqrt(longer side) * U V^T (Liu et al. 2025, equation 4); five Newton-Schulz
    # steps bring each singular value to between 0.68 and 1.13 of that (Jordan 2024).
    scaled = found / (-0.1 * 0.2 * np.sqrt(max(inputs, gradient.size // inputs)))
    assert ((np.diag(scaled) > 0.67) & (np.diag(scaled) < 1.14)).all(), np.diag(scaled)
    assert np.abs(scaled - np.diag(np.diag(scaled))).max() < 1e-3


def test_muon_leaves_the_rest_to_nadam_and_keeps_frozen_leaves():
    rng = np.random.default_rng(0)
    params = {
        "token_embedding": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
        "dense": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
        "kept": {"kernel": jnp.ones((4, 4))},
    }
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    muon, _ = train(params, grads, num_updates=3, name="muon", frozen=("kept",))
    adam, _ = train(params, grads, num_updates=3, name="adam", frozen=("kept",))
    for leaf in (lambda tree: tree["token_embedding"], lambda tree: tree["dense"]["bias"]):
        expected = nadam_numpy(leaf(params), np.asarray(leaf(grads)), 3, 0.1, 0.9, 0.99, 1e-8)
        np.testing.assert_allclose(leaf(muon), expected, rtol=1e-4)
    np.testing.assert_array_equal(muon["kept"]["kernel"], params["kept"]["kernel"])
    assert np.abs(muon["dense"]["kernel"] - adam["dense"]["kernel"]).max() > 1e-3


def test_an_unknown_optimizer_is_named():
    with pytest.raises(InputError, match="sgd.*adam, muon"):
        train(PARAMS, GRADS, name="sgd")
