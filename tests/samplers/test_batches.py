"""Batches of one size, whatever the number of images."""

import jax
import numpy as np
import pytest

from dimo_jax.samplers.batches import in_batches

KEY = jax.random.key(4)


def draw(keys, condition):
    """What an image is made of: its own key and its own condition."""
    assert len(keys) == len(condition)
    return {"key": jax.random.key_data(keys), "condition": condition}


@pytest.mark.parametrize("num", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("first_index", [0, 5])
def test_every_image_has_the_key_of_its_index_and_its_own_condition(num, first_index):
    condition = np.arange(10, 10 + num, dtype=np.int32)
    drawn = in_batches(draw, KEY, condition, 3, first_index)
    keys = [jax.random.key_data(jax.random.fold_in(KEY, first_index + i)) for i in range(num)]
    np.testing.assert_array_equal(drawn["condition"], condition)
    np.testing.assert_array_equal(drawn["key"], np.stack(keys))


def test_the_last_batch_is_filled_up_so_that_one_shape_is_compiled():
    sizes = []

    def sample(keys, condition):
        sizes.append((len(keys), len(condition)))
        return condition

    assert len(in_batches(sample, KEY, np.zeros((7, 2)), 3)) == 7
    assert sizes == [(3, 3)] * 3


def test_a_batch_that_the_devices_divide_is_spread_and_gives_the_same():
    seen = []

    @jax.jit
    def draw(keys, labels):
        return jax.vmap(lambda key: jax.random.bits(key, (3,)))(keys) + labels[:, None]

    def sample(keys, labels):
        drawn = draw(keys, labels)
        seen.append(len(drawn.sharding.device_set))
        return drawn

    labels = np.arange(20, dtype=np.uint32)
    spread = in_batches(sample, jax.random.key(1), labels, 2 * jax.local_device_count())
    alone = in_batches(sample, jax.random.key(1), labels, 5)
    assert set(seen) == {jax.local_device_count(), 1} and jax.local_device_count() > 1
    np.testing.assert_array_equal(spread, alone)
