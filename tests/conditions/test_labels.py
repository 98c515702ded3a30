import jax
import numpy as np
import pytest

from dimo_jax.conditions import labels
from dimo_jax.conditions.labels import LabelConditions
from dimo_jax.training import load_conditions


def test_labels_in_turn_are_balanced_where_shares_are_equal():
    assert labels.in_turn(12, 5).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert labels.in_turn(0, 2).tolist() == []


def test_labels_in_turn_keep_the_shares_and_go_in_rounds():
    # 10 of 6 : 3 : 1 are 6, 3 and 1; of 11 the quotas are 6.6, 3.3 and 1.1: the first has one more.
    assert labels.in_turn(10, 3, (60, 30, 10)).tolist() == [0, 1, 2, 0, 1, 0, 1, 0, 0, 0]
    assert np.bincount(labels.in_turn(11, 3, (60, 30, 10))).tolist() == [7, 3, 1]
    counts = np.asarray([171, 2418, 160, 0, 85])
    found = np.bincount(labels.in_turn(1000, 5, counts.tolist()), minlength=5)
    assert np.abs(found - 1000 * counts / counts.sum()).max() < 1 and found[3] == 0


def test_what_is_drawn_has_the_shares():
    def keys(seed):
        return jax.random.split(jax.random.key(seed), 20_000)

    found = np.bincount(labels.draw(keys(0), 3, (6, 3, 1)), minlength=3) / 20_000
    assert found == pytest.approx([0.6, 0.3, 0.1], abs=0.015)
    even = np.bincount(labels.draw(keys(1), 3), minlength=3) / 20_000
    assert even == pytest.approx([1 / 3] * 3, abs=0.015)


def test_what_is_measured_in_training_has_them_too():
    found = load_conditions.in_turn(LabelConditions(3, (2, 1, 1)), 8)
    assert np.bincount(found).tolist() == [4, 2, 2]
    assert load_conditions.in_turn(LabelConditions(3), 4).tolist() == [0, 1, 2, 0]
