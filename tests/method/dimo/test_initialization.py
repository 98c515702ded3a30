import jax
import jax.numpy as jnp
import numpy as np

from dimo_jax.common import rng
from dimo_jax.method.dimo import initialization

SIZES = {"num_tokens": 16, "codebook_size": 5, "mask_id": 5}


def keys(num, name="init"):
    return rng.example_keys(rng.stream_key(0, name), jnp.arange(num))


def test_exactly_round_rl_masks_and_the_rest_uniform_codes():
    ratio = jnp.linspace(0, 1, 2001)
    tokens = np.asarray(initialization.initial_tokens(keys(2001), ratio, **SIZES))
    np.testing.assert_array_equal((tokens == 5).sum(1), np.round(16 * np.asarray(ratio)))
    codes = np.bincount(tokens[tokens < 5], minlength=5)
    assert tokens.min() == 0
    assert np.abs(codes / codes.sum() - 0.2).max() < 0.015


def test_masks_fall_everywhere():
    tokens = np.asarray(initialization.initial_tokens(keys(3000), jnp.full((3000,), 0.5), **SIZES))
    assert np.abs((tokens == 5).mean(0) - 0.5).max() < 0.05


def test_ratio_is_fixed_or_uniform_in_its_range():
    fixed = initialization.draw_ratio(keys(100), 0.6, 0.6)
    np.testing.assert_array_equal(fixed, np.full(100, 0.6, np.float32))
    drawn = np.asarray(initialization.draw_ratio(keys(4000), 0.2, 0.8))
    assert drawn.min() >= 0.2 and drawn.max() < 0.8
    assert abs(drawn.mean() - 0.5) < 0.01
    assert abs(drawn.std() - 0.6 / np.sqrt(12)) < 0.01


def test_noise_preserves_variance_and_mixes_by_the_formula():
    e = jax.random.normal(jax.random.key(1), (500, 4, 8))
    for sigma in (0.1, 0.7, 1.0):
        noisy = np.asarray(initialization.perturb_embeddings(keys(500), e, sigma))
        assert abs(noisy.std() - 1) < 0.02
        # What is left of e, and what is not e.
        slope = (noisy * e).sum() / (e * e).sum()
        assert abs(slope - np.sqrt(1 - sigma**2)) < 0.02
        rest = noisy - np.sqrt(1 - sigma**2) * np.asarray(e)
        assert abs(rest.std() - sigma) < 0.01


def test_no_noise_at_sigma_zero_and_other_noise_for_each_example():
    e = jnp.ones((3, 4, 8))
    np.testing.assert_array_equal(initialization.perturb_embeddings(keys(3), e, 0.0), e)
    noisy = np.asarray(initialization.perturb_embeddings(keys(3), e, 0.5))
    assert len(np.unique(noisy)) == noisy.size


def test_noise_keeps_the_dtype():
    e = jnp.ones((3, 4, 8), jnp.bfloat16)
    assert initialization.perturb_embeddings(keys(3), e, 0.5).dtype == jnp.bfloat16
