import numpy as np
import pytest

from dimo_jax.evaluation.metrics import by_class


def test_a_class_with_fewer_than_two_examples_has_no_moments():
    features = np.array([[0.0], [2.0], [5.0]], np.float32)
    found = by_class.class_moments(features, np.array([0, 0, 2]), num_classes=3)
    assert found[0].mean == pytest.approx([1.0])
    assert found[0].covariance == pytest.approx(np.array([[2.0]]))
    assert found[1] is found[2] is None


def test_distances_are_of_each_class_in_percent_of_the_whole_variance():
    draw = np.random.default_rng(0)
    real = draw.normal(size=(60, 3)).astype(np.float32)
    labels = np.arange(60) % 3
    shift = np.array([0.0, 1.0, 3.0], np.float32)
    moved = real + shift[labels][:, None] * np.array([0, 1, 0], np.float32)
    of_real = by_class.class_moments(real, labels, 3)
    of_samples = by_class.class_moments(moved, labels, 3)
    found = by_class.frechet_percents(of_real, of_samples, variance=50.0)
    # Equal covariances leave the squared shift of the mean; 50 stands for 100 percent.
    assert found == pytest.approx([0.0, 2.0, 18.0], abs=1e-4)
    found = by_class.frechet_percents([None, *of_real[1:]], of_samples, variance=50.0)
    assert found[0] is None and found[1] == pytest.approx(2.0, abs=1e-4)


def test_accuracy_is_of_each_class_alone():
    labels, predicted = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 0, 0, 1, 0])
    assert by_class.accuracies(predicted, labels, 3) == [0.75, 0.5, None]


def test_the_nearest_is_of_the_own_class():
    # One feature; class 0 has real images at 0 and 10, class 1 at 100; class 2 has none.
    features = np.array([[1.0], [10.0], [97.0], [100.5], [20.0], [0.0]], np.float32)
    labels = np.array([0, 0, 1, 1, 0, 2])
    train, train_labels = np.array([[0.0], [10.0], [100.0]], np.float32), np.array([0, 0, 1])
    index, distance = by_class.nearest_of_class(features, labels, train, train_labels)
    assert index[:5].tolist() == [0, 1, 2, 2, 1]
    np.testing.assert_array_equal(distance, [1, 0, 3, 0.5, 10, np.nan])
