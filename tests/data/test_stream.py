import os
import subprocess
import sys

import numpy as np
import pytest

from dimo_jax.data import stream
from dimo_jax.data.stream import batch_indices, batch_views
from tests.helpers import ROOT


@pytest.fixture(autouse=True, params=["ranked", "computed"])
def order(request, monkeypatch):
    """Both orders, at sizes where only the first is used otherwise."""
    monkeypatch.setattr(stream, "MAX_RANKED", 2**20 if request.param == "ranked" else 0)
    return request.param


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


def test_another_process_draws_the_same_batch(order):
    # Catches hash() and other state that is salted for each process.
    num = 100 if order == "ranked" else 2**20 + 1
    code = f"from dimo_jax.data.stream import batch_indices as b; print(b(3, 4, 8, {num}).tolist())"
    env = {**os.environ, "PYTHONHASHSEED": "123"}
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, check=True, capture_output=True, text=True
    ).stdout
    assert output.strip() == str(batch_indices(3, 4, 8, num).tolist())


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


def test_the_order_never_changes(order):
    # Resumed runs rely on it, across versions too: these were written down once.
    first, later = batch_indices(0, 0, 5, 1400).tolist(), batch_indices(0, 280, 5, 1400).tolist()
    if order == "ranked":
        assert first == [1136, 489, 327, 379, 1242] and later == [788, 1241, 116, 551, 176]
    else:
        assert first == [793, 131, 987, 735, 956] and later == [86, 1140, 918, 689, 786]


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


@pytest.mark.parametrize("num", [1, 2, 3, 7, 16, 17, 1000, 65_537, 999_983])
def test_a_computed_order_has_every_example_once_at_any_size(num):
    found = stream._permuted(5, 2, np.arange(num), num)
    np.testing.assert_array_equal(np.sort(found), np.arange(num))


def test_a_computed_order_is_the_cipher_written_out():
    """Place by place, in Python's integers."""

    def mixed(word, key):
        word = (word + key) * 0x9E3779B97F4A7C15 % 2**64
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        return word ^ (word >> 31)

    def at(place, num, keys):
        a = next(side for side in range(1, num + 1) if side * side >= num)
        b = next(side for side in range(1, num + 1) if a * side >= num)
        while True:
            left, right = divmod(place, b)
            for even, odd in zip(keys[::2], keys[1::2], strict=True):
                left = (left + mixed(right, even)) % a
                right = (right + mixed(left, odd)) % b
            place = left * b + right
            if place < num:
                return place

    words = np.random.SeedSequence(9, spawn_key=(4,)).generate_state(8, np.uint64)
    keys = [int(word) for word in words]
    wanted = [at(place, 1234, keys) for place in range(1234)]
    assert stream._permuted(9, 4, np.arange(1234), 1234).tolist() == wanted


def test_neighbours_are_not_kept_together():
    """The distance between the examples of two places, one behind the other, is that of chance."""
    found = stream._permuted(0, 0, np.arange(100_000), 100_000)
    # Of two places drawn at random a third of the size, with a deviation of 0.07 % of it here.
    assert abs(np.abs(np.diff(found)).mean() / 100_000 - 1 / 3) < 0.003


def test_every_version_comes_once_in_as_many_epochs():
    num, views, size = 50, 4, 25
    seen = np.zeros((num, views), int)
    by_epoch = []
    for step in range(views * num // size):
        chosen = batch_indices(3, step, size, num)
        versions = batch_views(3, step, chosen, num, views)
        seen[chosen, versions] += 1
        by_epoch.append(versions)
    assert (seen == 1).all()
    # Within an epoch all versions are there, about as often as each other.
    assert (np.bincount(np.concatenate(by_epoch[:2]), minlength=views) > 3).all()


def test_versions_depend_on_seed_epoch_and_example_alone():
    num, views = 30, 5

    def versions(seed, size):
        found = {}
        for step in range(3 * num // size):
            chosen = batch_indices(seed, step, size, num)
            epochs = (step * size + np.arange(size)) // num
            places = zip(epochs.tolist(), chosen.tolist(), strict=True)
            found |= dict(zip(places, batch_views(seed, step, chosen, num, views), strict=True))
        return found

    assert versions(0, 1) == versions(0, 10) == versions(0, 45)
    assert versions(0, 10) != versions(1, 10)


def test_one_version_is_the_picture_alone():
    assert batch_views(0, 7, batch_indices(0, 7, 8, 20), 20, 1).tolist() == [0] * 8
