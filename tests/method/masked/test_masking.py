import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax.common import rng
from dimo_jax.method.masked import masking

INDEX = jnp.arange(4000)


def keys(name="mask", index=INDEX):
    return rng.example_keys(rng.stream_key(0, name), index)


def settings(**changes):
    base = {"schedule": "arccos", "kind": "exact", "min_ratio": 0.0, "max_ratio": 1.0}
    return masking.MaskSettings(**(base | changes))


def test_exact_count_masks_exactly_that_many_and_at_least_one():
    ratio = jnp.linspace(0, 1, 4000)
    mask = np.asarray(masking.exact_count_mask(keys(), ratio, 64))
    expected = np.maximum(1, np.round(64 * np.asarray(ratio)))
    np.testing.assert_array_equal(mask.sum(1), expected)


def test_exact_count_is_uniform_over_positions():
    mask = np.asarray(masking.exact_count_mask(keys(), jnp.full((4000,), 0.25), 16))
    # Each position is masked in a quarter of 4000 examples: deviation sqrt(4000 * 3/16) = 27.
    assert np.abs(mask.sum(0) - 1000).max() < 5 * 27


def test_bernoulli_has_the_binomial_spread_and_may_mask_nothing():
    mask = np.asarray(masking.bernoulli_mask(keys(), jnp.full((4000,), 0.25), 16))
    counts = mask.sum(1)
    assert abs(counts.mean() - 4) < 0.15
    assert abs(counts.var() - 3) < 0.3  # 16 * 1/4 * 3/4; an exact count has 0
    assert (counts == 0).any()


@pytest.mark.parametrize("kind", masking.MASK_KINDS)
def test_the_kind_is_obeyed(kind):
    limits = {"min_ratio": 0.5, "max_ratio": 0.5}
    mask, ratio = masking.sample_mask(keys(), 16, settings(kind=kind, **limits))
    spread = np.asarray(mask).sum(1).var()
    assert (spread == 0) == (kind == "exact")
    np.testing.assert_array_equal(ratio, np.full(4000, 0.5, np.float32))


def test_limits_and_schedule_reach_the_ratio():
    _, plain = masking.sample_mask(keys(), 16, settings())
    _, square = masking.sample_mask(keys(), 16, settings(schedule="square"))
    _, clamped = masking.sample_mask(keys(), 16, settings(min_ratio=0.3, max_ratio=0.6))
    assert abs(float(plain.mean()) - 2 / np.pi) < 0.02
    assert abs(float(square.mean()) - 1 / 3) < 0.02
    np.testing.assert_allclose(clamped, np.clip(plain, 0.3, 0.6))


def test_an_example_does_not_depend_on_its_batch():
    whole, _ = masking.sample_mask(keys(), 16, settings())
    part, _ = masking.sample_mask(keys(index=INDEX[7:9]), 16, settings())
    np.testing.assert_array_equal(part, whole[7:9])


def test_apply_mask_replaces_where_true():
    tokens = jnp.array([[3, 4, 5]])
    mask = jnp.array([[True, False, True]])
    np.testing.assert_array_equal(masking.apply_mask(tokens, mask, 9), [[9, 4, 9]])


def test_random_subset_gives_every_subset_equally_often():
    chosen = masking.random_subset(keys(), jnp.full((4000,), 2), 4)
    codes = np.asarray(chosen) @ (1 << np.arange(4))
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == 6
    assert np.abs(counts - 4000 / 6).max() < 5 * np.sqrt(4000 * (1 / 6) * (5 / 6))


def test_ratio_and_positions_are_independent_draws():
    # The same key for both would tie the number of masks to where they are.
    mask, ratio = masking.sample_mask(keys(), 16, settings(kind="exact"))
    first = np.asarray(mask)[:, 0] - np.asarray(mask).mean(1)
    assert abs(np.corrcoef(first, np.asarray(ratio))[0, 1]) < 0.06
    assert jax.dtypes.issubdtype(mask.dtype, np.bool_)
