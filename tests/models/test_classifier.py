import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax import models
from dimo_jax.common.errors import InputError

CONFIG = {
    "name": "classifier",
    "image_shape": [8, 8, 1],
    "channels": [4, 8],
    "num_features": 6,
    "num_classes": 3,
    "dropout": 0.5,
}


@pytest.fixture(scope="module")
def classifier():
    return models.build(CONFIG)


@pytest.fixture(scope="module")
def params(classifier):
    return jax.jit(classifier.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(2), (5, 8, 8, 1))


def test_config_is_rebuilt_and_sizes_are_as_asked(classifier, params, images):
    assert classifier.config == CONFIG
    assert jax.eval_shape(classifier.features, params, images).shape == (5, 6)
    assert jax.eval_shape(classifier.logits, params, images).shape == (5, 3)


def test_logits_are_a_linear_map_of_the_features_image_by_image(classifier, params, images):
    features = np.asarray(jax.jit(classifier.features)(params, images))
    head = jax.tree.map(np.asarray, params["head"])
    logits = jax.jit(classifier.logits)
    expected = features @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits(params, images), expected, atol=1e-5)
    np.testing.assert_allclose(logits(params, images[::-1]), expected[::-1], atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 0


def test_dropout_acts_only_with_a_key(classifier, params, images):
    logits = jax.jit(classifier.logits)
    plain, dropped = logits(params, images), logits(params, images, jax.random.key(1))
    assert not np.allclose(plain, dropped)
    np.testing.assert_array_equal(plain, logits(params, images, None))


def test_every_pixel_and_every_parameter_counts(classifier, params, images):
    def total(params, images):
        return jnp.sum(classifier.logits(params, images) ** 2)

    by_params, by_pixel = jax.jit(jax.grad(total, argnums=(0, 1)))(params, images)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(by_params))
    assert np.mean(np.asarray(by_pixel) != 0) > 0.9


def test_too_many_convolutions_for_the_image_are_refused():
    with pytest.raises(InputError, match="5 convolutions"):
        models.build(CONFIG | {"channels": [4] * 5})


def test_unknown_field_is_refused():
    with pytest.raises(InputError, match="hidden"):
        models.build(CONFIG | {"hidden": 3})
