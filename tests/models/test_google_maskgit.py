import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from dimo_jax import models
from dimo_jax.common import trees
from dimo_jax.common.errors import InputError

SIZES = {
    "name": "google_maskgit",
    "num_tokens": 6,
    "codebook_size": 5,
    "num_classes": 3,
    "width": 8,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 16,
    "dropout": 0.3,
}
MASK = 5
TOKENS = np.array([[0, 1, 5, 5, 4, 2], [5, 5, 5, 5, 5, 5]], np.int32)
LABELS = np.array([2, 0], np.int32)


@pytest.fixture(scope="module")
def network():
    return models.build(SIZES)


@pytest.fixture(scope="module")
def run(network):
    return jax.jit(network.apply)


@pytest.fixture(scope="module")
def params(network):
    # Every leaf random, the norms' scales and the biases too, or a forgotten one would not show.
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda x: generator.normal(0, 0.5, x.shape).astype(np.float32), shapes)


def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(x, p):
    q, k, v = (
        np.einsum("bnd,dhk->bhnk", x, p[name]["kernel"]) + p[name]["bias"][None, :, None]
        for name in ("query", "key", "value")
    )
    weights = softmax(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]), -1)
    return np.einsum("bhnk,hkd->bnd", weights @ v, p["out"]["kernel"]) + p["out"]["bias"]


def reference(p, ids, perturb=lambda e: e):
    """The original's forward pass in float64: ids [B, 1 + L], the class first, -1 for [MASK]."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
    table = p["token_embedding"]
    x = table[ids]  # NumPy's -1 is the last row too, as it was in the original's lookup
    x[:, 1:] = perturb(x[:, 1:])
    x = norm(x + p["position_embedding"], p["first_norm"])
    for i in range(SIZES["depth"]):
        b = p[f"block_{i}"]
        x = norm(x + attention(x, b["attention"]), b["attention_norm"])
        x = norm(x + dense(gelu(dense(x, b["mlp_in"])), b["mlp_out"]), b["mlp_norm"])
    x = norm(gelu(dense(x, p["last"])), p["last_norm"])
    return (x @ table.T + p["output_bias"])[:, 1:, :5]


def original_ids(tokens, labels):
    return np.concatenate([labels[:, None] + 5, np.where(tokens == MASK, -1, tokens)], axis=1)


def test_logits_are_those_of_the_description(run, params):
    found = run(params, jnp.asarray(TOKENS), jnp.asarray(LABELS))
    assert found.shape == (2, 6, 5)
    expected = reference(params, original_ids(TOKENS, LABELS))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_mask_is_the_last_row_of_the_table_and_no_other(run, params):
    tokens, labels = jnp.full((2, 6), MASK), jnp.zeros(2, jnp.int32)
    before = run(params, tokens, labels)
    for row in range(9):
        table = params["token_embedding"].copy()
        table[row] += 1.0
        after = run({**params, "token_embedding": table}, tokens, labels)
        # Codes' rows are output weights: they move their own logit, and nothing else does.
        others = [v for v in range(5) if v != row]
        moved = not np.array_equal(before[..., others], after[..., others])
        assert moved == (row in (5, 8)), row  # class 0 and [MASK]


def test_noise_comes_after_the_lookup_before_the_positions_and_spares_the_class(network, params):
    noisy = jax.jit(functools.partial(network.apply, perturb=lambda e: -2.0 * e))
    found = noisy(params, jnp.asarray(TOKENS), jnp.asarray(LABELS))
    expected = reference(params, original_ids(TOKENS, LABELS), lambda e: -2.0 * e)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_null_label_is_refused_or_gives_no_numbers(network, run, params):
    tokens, labels = jnp.asarray(TOKENS), jnp.asarray([2, 3], jnp.int32)
    with pytest.raises(InputError, match=r"label 3, .* classes 0 \.\. 2 and no null class"):
        network.apply(params, tokens, labels)
    found = run(params, tokens, labels)
    assert np.isnan(found[1]).all() and np.isfinite(found[0]).all()


@pytest.mark.parametrize(("num_tokens", "total"), [(256, 172_457_193), (1024, 173_047_017)])
def test_the_parameter_count_is_that_of_the_published_checkpoint(num_tokens, total):
    sizes = {
        "num_tokens": num_tokens, "codebook_size": 1024, "num_classes": 1000, "width": 768,
        "depth": 24, "heads": 16, "mlp_dim": 3072, "dropout": 0.1,
    }  # fmt: skip
    big = models.build({**SIZES, **sizes})
    shapes = jax.eval_shape(big.init, jax.random.key(0))
    assert shapes["token_embedding"].shape == (2025, 768)
    # At 512 px there are 768 more positions of 768 numbers, and nothing else.
    assert sum(x.size for x in jax.tree.leaves(shapes)) == total


def test_dropout_acts_only_with_a_key(run, params):
    args = (params, jnp.asarray(TOKENS), jnp.asarray(LABELS))
    one, two, again = (run(*args, dropout_key=jax.random.key(seed)) for seed in (1, 2, 1))
    assert not np.array_equal(one, run(*args))
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(one, again)


def test_every_parameter_has_a_gradient(network, params):
    def total(p):
        return (network.apply(p, jnp.asarray(TOKENS), jnp.asarray(LABELS)) ** 2).sum()

    gradient = trees.named_leaves(jax.jit(jax.grad(total))(params))
    assert np.isfinite(np.concatenate([g.ravel() for g in gradient.values()])).all()
    # Keys' biases shift all logits of a query alike, which the softmax does not see.
    dead = [n for n, g in gradient.items() if not np.any(np.abs(g) > 1e-9)]
    assert [n for n in dead if not n.endswith("key/bias")] == []


def test_heads_that_do_not_divide_are_refused_and_the_config_rebuilds(network):
    with pytest.raises(InputError, match="8 is not divisible by 3 heads"):
        models.build({**SIZES, "heads": 3})
    assert network.config == SIZES
    assert models.build(network.config).mask_id == MASK
