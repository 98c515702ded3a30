"""A network and its text tower as one: the gradient of both, and the same logits once parted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax import models
from dimo_jax.common import trees
from dimo_jax.models import clip, joined
from tests.models.test_meissonic import SIZES

MICRO = (32.0, 32.0, 0.0, 0.0, 6.0)
TOWER = {
    "name": "clip",
    "activation": "gelu",
    "projection": SIZES["pooled_dim"],
    "text": {
        "vocabulary": 20, "context": SIZES["text_length"], "width": SIZES["text_dim"], "depth": 2,
        "heads": 2, "mlp_dim": 24,
    },
    "image": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    network, encoder = models.build({**SIZES, "single_depth": 1}), clip.build(TOWER)
    both = joined.join(network, encoder, MICRO)
    numbers = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(numbers.normal(0, 0.3, x.shape), x.dtype),
        jax.eval_shape(both.init, jax.random.key(0)),
    )
    tokens = jnp.asarray(numbers.integers(0, both.mask_id + 1, (3, both.num_tokens)), jnp.int32)
    ids = numbers.integers(0, 19, (3, 5)).astype(np.int32)
    ids[:, 3] = 19  # the end of a text
    return network, encoder, both, params, tokens, jnp.asarray(ids)


def test_parted_parameters_give_the_same_logits(pair):
    network, encoder, both, params, tokens, ids = pair
    found = jax.jit(both.apply)(params, tokens, {"ids": ids})
    features = jax.jit(encoder.encode_text)(params["text_encoder"], ids)
    condition = {
        "states": features["penultimate"],
        "pooled": features["projected"],
        "micro": jnp.tile(jnp.asarray(MICRO), (3, 1)),
    }
    expected = jax.jit(network.apply)(params["transformer"], tokens, condition)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    other = jax.jit(both.apply)(params, tokens, {"ids": ids.at[0, 1].set(ids[0, 1] + 1)})
    assert not np.allclose(other[0], found[0], atol=1e-3)
    np.testing.assert_allclose(other[1:], found[1:], atol=1e-5 * np.abs(expected).max())
    assert both.condition["ids"].shape == (5,) and both.num_classes == 0 and both.has_null


def test_the_gradient_reaches_every_part_of_the_tower(pair):
    *_, both, params, tokens, ids = pair

    def loss(params):
        logits = both.apply(params, tokens, {"ids": ids})
        return -jax.nn.log_softmax(logits)[..., 0].mean()

    gradient = jax.jit(jax.grad(loss))(params)
    leaves = trees.named_leaves(gradient)
    silent = [name for name, x in leaves.items() if not np.abs(x).max() > 1e-9]
    # The keys' bias moves all scores of a query alike.
    assert [name for name in silent if not name.endswith("key/bias")] == []
    rows = np.abs(leaves["text_encoder/text/token_embedding"]).sum(1) > 0
    assert set(np.flatnonzero(rows)) == set(ids[:, :5].ravel().tolist())


def test_a_tower_that_is_divided_is_gathered(pair):
    network, encoder, _, params, tokens, ids = pair
    seen = []

    def gather(tree):
        seen.append(tree)
        return tree

    divided = joined.join(network, encoder, MICRO, gather)
    found = jax.eval_shape(divided.apply, params, tokens, {"ids": ids})
    assert [jax.tree.structure(tree) for tree in seen] == [
        jax.tree.structure(params["text_encoder"])
    ]
    assert found.shape == (3, 16, 11) and found.dtype == jnp.float32
