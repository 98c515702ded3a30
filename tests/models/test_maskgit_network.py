import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from dimo_jax import models
from dimo_jax.common import trees
from dimo_jax.common.errors import InputError

SIZES = {
    "name": "maskgit",
    "num_tokens": 6,
    "codebook_size": 5,
    "num_classes": 3,
    "width": 8,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 16,
    "dropout": 0.3,
    "predict_mask_id": True,
}
TOKENS = np.array([[0, 1, 5, 5, 4, 2], [5, 5, 5, 5, 5, 5]], np.int32)
LABELS = np.array([2, 3], np.int32)  # 3 is the null class


@pytest.fixture(scope="module")
def network():
    return models.build(SIZES)


@pytest.fixture(scope="module")
def params(network):
    # Every leaf random, the norms' scales and the biases too, or a forgotten one would not show.
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda x: generator.normal(0, 0.5, x.shape).astype(np.float32), shapes)


def norm(x, p, epsilon):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def attention(x, p):
    q, k, v = (
        np.einsum("bnd,dhk->bhnk", x, p[name]["kernel"]) + p[name]["bias"][None, :, None]
        for name in ("query", "key", "value")
    )
    weights = softmax(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]), -1)
    return np.einsum("bhnk,hkd->bnd", weights @ v, p["out"]["kernel"]) + p["out"]["bias"]


def reference(p, tokens, labels, perturb=lambda e: e):
    """The forward pass of MaskGit-PyTorch v1.0 in NumPy, in float64, from its description."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
    table = p["token_embedding"]
    image = perturb(table[tokens])
    x = np.concatenate([image, table[6 + labels][:, None]], 1) + p["position_embedding"]
    x = gelu(dense(norm(x, p["first_norm_in"], 1e-12), p["first_in"]))
    x = dense(norm(x, p["first_norm_out"], 1e-12), p["first_out"])
    for i in range(SIZES["depth"]):
        b = p[f"block_{i}"]
        x = x + attention(norm(x, b["attention_norm"], 1e-5), b["attention"])
        h = gelu(dense(norm(x, b["mlp_norm"], 1e-5), b["mlp_in"]))
        x = x + dense(h, b["mlp_out"])
    x = gelu(dense(norm(x, p["last_norm_in"], 1e-12), p["last"]))
    x = norm(x, p["last_norm_out"], 1e-12)
    return (x @ table.T + p["output_bias"])[:, :6, :6]


def test_logits_are_those_of_the_description(network, params):
    found = network.apply(params, jnp.asarray(TOKENS), jnp.asarray(LABELS))
    np.testing.assert_allclose(found, reference(params, TOKENS, LABELS), atol=2e-5)


def test_noise_comes_after_the_lookup_before_the_positions_and_spares_the_class(network, params):
    found = network.apply(
        params, jnp.asarray(TOKENS), jnp.asarray(LABELS), perturb=lambda e: -2.0 * e
    )
    expected = reference(params, TOKENS, LABELS, lambda e: -2.0 * e)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_without_the_mask_id_the_same_logits_but_the_last(network, params):
    other = models.build({**SIZES, "predict_mask_id": False})
    args = (params, jnp.asarray(TOKENS), jnp.asarray(LABELS))
    np.testing.assert_array_equal(other.apply(*args), network.apply(*args)[..., :5])


def test_the_parameter_count_is_that_of_the_published_checkpoint():
    sizes = {
        "num_tokens": 256, "codebook_size": 1024, "num_classes": 1000, "width": 768, "depth": 24,
        "heads": 16, "mlp_dim": 3072, "dropout": 0.1,
    }  # fmt: skip
    big = models.build({**SIZES, **sizes})
    shapes = jax.eval_shape(big.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 174_160_874


def test_dropout_acts_only_with_a_key(network, params):
    args = (params, jnp.asarray(TOKENS), jnp.asarray(LABELS))
    one, two, again = (network.apply(*args, dropout_key=jax.random.key(seed)) for seed in (1, 2, 1))
    assert not np.array_equal(one, network.apply(*args))
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(one, again)


@pytest.mark.slow
def test_every_parameter_has_a_gradient(network, params):
    def total(p):
        return (network.apply(p, jnp.asarray(TOKENS), jnp.asarray(LABELS)) ** 2).sum()

    gradient = trees.named_leaves(jax.grad(total)(params))
    # Keys' biases shift all logits of a query alike, which the softmax does not see.
    dead = [n for n, g in gradient.items() if not np.any(np.abs(g) > 1e-9)]
    assert [n for n in dead if not n.endswith("key/bias")] == []


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match="8 is not divisible by 3 heads"):
        models.build({**SIZES, "heads": 3})
    with pytest.raises(InputError, match="no network named 'vit'"):
        models.build({"name": "vit"})
    with pytest.raises(InputError, match="lenght"):
        models.build({**SIZES, "lenght": 3})


def test_the_config_rebuilds_the_network(network):
    assert network.config == SIZES
    assert models.build(network.config).mask_id == 5
