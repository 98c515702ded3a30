"""di4c's mixture token against the logits of the original modules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax import models
from dimo_jax.models import maskgit
from tests.helpers import di4c

FORWARD = di4c.case("fwd")
TOKENS, LABELS = FORWARD["tokens"].reshape(2, 16), di4c.labels(FORWARD)


def logits(which, condition):
    network, params, _ = di4c.network(which)
    # One operation at a time, as the originals: what XLA fuses is rounded otherwise, up to 1.05e-5
    # in all on an Intel Xeon.
    return network.apply(params, jnp.asarray(TOKENS), condition)


@pytest.mark.parametrize("z", ["a", "b"])
def test_logits_with_a_mixture_token_are_the_originals(z):
    mixture = jnp.asarray(FORWARD[f"z_{z}"][:, 0])
    found = logits("student", {"label": jnp.asarray(LABELS), "mixture": mixture})
    assert FORWARD[f"logits_{z}"].std() > 1
    np.testing.assert_allclose(found, FORWARD[f"logits_{z}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("which", "key"), [("student", "without_z"), ("teacher", "teacher")])
def test_logits_of_labels_alone_are_those_without_the_token(which, key):
    found = logits(which, jnp.asarray(LABELS))
    np.testing.assert_allclose(found, FORWARD[f"logits_{key}"], rtol=0, atol=1e-5)


def test_features_are_the_originals():
    found = maskgit.mixture_features(jnp.asarray([0, 0.1, 0.7, 1], jnp.float32))
    np.testing.assert_allclose(found, FORWARD["features_z"], rtol=0, atol=1e-6)


def test_a_network_without_a_mixture_says_nothing_of_it():
    network = models.build({**di4c.TEACHER, "mixture_dim": 0})
    assert "mixture_dim" not in network.config and not network.has_mixture
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert not [name for name in shapes if "mixture" in name]


def test_the_projection_starts_as_torch_linear_does():
    class Projection(nn.Module):
        @nn.compact
        def __call__(self, x):
            return maskgit._as_torch(x, 64, "p")

    params = Projection().init(jax.random.key(0), jnp.zeros((1, 128)))["params"]["p"]
    for x in (params["kernel"], params["bias"]):
        assert 128**-0.5 * 0.9 < np.abs(x).max() <= 128**-0.5


def test_in_bfloat16_two_near_numbers_stay_apart():
    """1000 lambda has steps of 4 there: these two would be one."""
    network = models.build(di4c.STUDENT, models.Compute(dtype="bfloat16"))
    condition = {"label": jnp.asarray([3, 3]), "mixture": jnp.asarray([0.9, 0.9001])}
    tokens = jnp.asarray(TOKENS[[0, 0]])
    one, other = jax.jit(network.apply)(di4c.network("student")[1], tokens, condition)
    assert np.abs(one - other).max() > 1e-2
