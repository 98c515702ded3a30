"""What samples are of: classes in turn, or the texts of the test images."""

import numpy as np
import pytest

from dimo_jax.evaluation.real_images import RealImages, images_with_labels


def of(**changes):
    images = np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1)
    labels = np.array([0, 1, 2, 0, 1, 2], np.int32)
    fields = {"train_images": images, "train_labels": labels, "test_images": images}
    fields |= {"num_classes": 3, "encode": lambda x: x, "codebook_size": 2}
    return RealImages(**{**fields, "test_labels": labels, **changes})


def test_classes_are_their_own_numbers():
    real = of()
    numbers = real.in_turn(5)
    assert numbers.tolist() == real.classes(numbers).tolist() == [0, 1, 2, 0, 1]
    # The next image of each class.
    assert real.pictured(numbers).ravel().tolist() == [0, 1, 2, 3, 4]
    assert real.texts_of(numbers) == []
    assert of(shares=(2, 0, 1)).in_turn(3).tolist() == [0, 2, 0]


def test_texts_are_those_of_the_test_images_with_their_classes():
    real = of(texts=("a", "b", "c", "d", "e", "f"), shares=(1, 0, 0))
    numbers = real.in_turn(12)
    assert np.bincount(numbers).tolist() == [2] * 6
    assert real.classes(numbers).tolist() == [number % 3 for number in numbers]
    assert real.pictured(numbers).ravel() == pytest.approx(numbers)
    assert "".join(real.texts_of(numbers)) == "".join("abcdef"[number] for number in numbers)


def test_a_class_without_a_picture_is_shown_black():
    pictures = np.arange(1.0, 4.0, dtype=np.float32).reshape(3, 1, 1, 1)
    found = images_with_labels(pictures, np.array([0, 2, 0]), np.array([0, 1, 2, 0, 0]))
    assert found.ravel().tolist() == [1, 0, 2, 3, 1] and pictures.ravel().tolist() == [1, 2, 3]
