import jax
import numpy as np
from sklearn.datasets import load_digits

from dimo_jax.tokenizers import gray_levels


def test_lossless_on_the_digits():
    levels = load_digits().images  # 0 .. 16
    images = (levels / 16).astype(np.float32)[..., None]
    tokenizer = gray_levels.build()
    tokens = tokenizer.encode({}, images)
    np.testing.assert_array_equal(tokens, levels.reshape(1797, 64))
    np.testing.assert_array_equal(tokenizer.decode({}, tokens), images)


def test_the_nearest_level_is_taken():
    tokenizer = gray_levels.build(image_size=2, num_levels=5)
    images = np.array([0.12, 0.13, 0.62, 1.0], np.float32).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(tokenizer.encode({}, images), [[0, 1, 2, 4]])


def test_values_outside_are_clipped():
    tokenizer = gray_levels.build(image_size=2)
    images = np.array([-0.5, -0.01, 1.01, 3.0], np.float32).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(tokenizer.encode({}, images), [[0, 0, 16, 16]])


def test_there_are_no_parameters():
    assert gray_levels.build().init(jax.random.key(0)) == {}
