import os
import subprocess
import sys

import numpy as np
import pytest

from dimo_jax.data.stream import batch_indices
from tests.helpers import ROOT


def positions(seed, num_positions, batch_size, num_examples):
    """The first positions of the stream, put together from whole batches."""
    num_steps = -(-num_positions // batch_size)
    batches = [batch_indices(seed, step, batch_size, num_examples) for step in range(num_steps)]
    return np.concatenate(batches)[:num_positions]


def test_the_same_step_gives_the_same_batch_whatever_was_asked_before():
    wanted = batch_indices(3, 40, 64, 1400).tolist()
    for step in (0, 41, 5_000, 39):
        batch_indices(4, step, 64, 1400)
    assert batch_indices(3, 40, 64, 1400).tolist() == wanted


def test_another_process_draws_the_same_batch():
    # Catches hash() and other state that is salted for each process.
    code = "from dimo_jax.data.stream import batch_indices as b; print(b(3, 40, 8, 100).tolist())"
    env = {**os.environ, "PYTHONHASHSEED": "123"}
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, check=True, capture_output=True, text=True
    ).stdout
    assert output.strip() == str(batch_indices(3, 40, 8, 100).tolist())


@pytest.mark.parametrize("batch_size", [1, 7, 10, 64, 100, 250])
def test_every_epoch_covers_every_example_once(batch_size):
    epochs = positions(0, 400, batch_size, 100).reshape(4, 100)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(100), (4, 1)))


@pytest.mark.parametrize("batch_size", [7, 64, 250])
def test_the_stream_does_not_depend_on_how_it_is_cut_into_batches(batch_size):
    # With batches of one no batch can cross the border of an epoch.
    one_by_one = positions(5, 500, 1, 100)
    np.testing.assert_array_equal(positions(5, 500, batch_size, 100), one_by_one)


def test_epochs_are_shuffled_and_differ():
    epochs = positions(0, 300, 100, 100).reshape(3, 100)
    # Two random permutations of 100 agree in one place on average.
    assert (epochs[0] == epochs[1]).sum() < 10
    assert (epochs[1] == epochs[2]).sum() < 10
    assert (epochs[0] == np.arange(100)).sum() < 10


@pytest.mark.parametrize("other", [1, 2**32, 2**32 + 7])
def test_other_seeds_differ(other):
    assert (batch_indices(0, 0, 100, 100) == batch_indices(other, 0, 100, 100)).sum() < 10


def test_a_large_seed_is_not_a_small_one_in_a_later_epoch():
    # [7, 1] are the 32-bit words of 2**32 + 7 as well as of the pair (7, 1).
    large = batch_indices(2**32 + 7, 0, 100, 100)
    assert (large == batch_indices(7, 1, 100, 100)).sum() < 10


def test_positions_are_uniform():
    # Example 0's place within the epoch, over 2,000 epochs of 10: chi-square with 9 degrees of
    # freedom stays below 27.9 with probability 0.999.
    epochs = positions(1, 20_000, 1_000, 10).reshape(-1, 10)
    counts = np.bincount(epochs.argmin(axis=1), minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9


def test_the_order_never_changes():
    # Resumed runs rely on it, across versions too: these were written down once.
    assert batch_indices(0, 0, 5, 1400).tolist() == [1136, 489, 327, 379, 1242]
    assert batch_indices(0, 280, 5, 1400).tolist() == [788, 1241, 116, 551, 176]


def test_a_batch_can_be_changed_without_changing_the_stream():
    first = batch_indices(0, 0, 10, 10)
    wanted = first.tolist()
    first[:] = 0
    assert batch_indices(0, 0, 10, 10).tolist() == wanted


def test_int64():
    assert batch_indices(0, 0, 3, 10).dtype == np.int64


@pytest.mark.parametrize("arguments", [(-1, 0, 1, 1), (0, -1, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0)])
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="expected seed and step >= 0"):
        batch_indices(*arguments)
