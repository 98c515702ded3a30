import numpy as np
import pytest

from dimo_jax.evaluation.metrics import tokens


def test_planted_duplicates_are_counted_once_each():
    samples = np.random.default_rng(0).integers(0, 17, (50, 64)).astype(np.int32)
    assert tokens.share_of_duplicates(samples) == 0
    samples[10] = samples[30] = samples[40] = samples[3]  # three equal an earlier one
    samples[49] = samples[48]
    assert tokens.share_of_duplicates(samples) == pytest.approx(4 / 50)


def test_planted_copies_are_counted_and_near_ones_are_not():
    rows = np.random.default_rng(0).integers(0, 17, (600, 64)).astype(np.int32)
    training, samples = rows[:500], rows[500:]
    assert tokens.share_of_copies(samples, training) == 0
    samples[7], samples[9], samples[11] = training[3], training[3], training[4]
    samples[12] = training[5]
    samples[12, 0] += 1
    assert tokens.share_of_copies(samples, training) == pytest.approx(3 / 100)


def test_the_nearest_row_by_loops():
    numbers = np.random.default_rng(1)
    training = numbers.integers(0, 4, (150, 20)).astype(np.int32)
    samples = numbers.integers(0, 4, (140, 20)).astype(np.int32)
    samples[139] = training[149]
    samples[139, [3, 19]] += 1
    samples[70] = training[0]
    wanted = [
        min(sum(a != b for a, b in zip(x, y, strict=True)) for y in training.tolist())
        for x in samples.tolist()
    ]
    found = tokens.fewest_differences(samples, training)
    assert found.tolist() == wanted and (wanted[139], wanted[70]) == (2, 0)


def test_copies_of_another_dtype_are_refused_rather_than_never_found():
    with pytest.raises(ValueError, match="dtypes differ"):
        tokens.share_of_copies(np.zeros((2, 2), np.int64), np.zeros((2, 2), np.int32))


def test_entropy_in_closed_form():
    constant = np.full((8, 3), 2)
    assert tokens.entropy(constant, 5) == 0
    uniform = np.stack([np.arange(16), np.arange(16)[::-1]], axis=1)
    assert tokens.entropy(uniform, 16) == pytest.approx(4)
    # A quarter of code 1: 2 - 0.75 log2(3) bits; the constant position beside it halves the mean.
    quarter = np.array([[0, 9], [0, 9], [0, 9], [1, 9]])
    expected = (2 - 0.75 * np.log2(3)) / 2
    assert tokens.entropy(quarter, 10) == pytest.approx(expected)


def test_entropy_refuses_a_mask_token():
    with pytest.raises(ValueError, match="codes: 16"):
        tokens.entropy(np.array([[0, 16]]), 16)
