"""Nearest neighbours in blocks on 8 devices, against prdc and torch-fidelity."""

from tests.helpers import torch_peers  # noqa: F401

# isort: split

import jax
import numpy as np
import pytest
import torch
from prdc import compute_prdc
from sklearn.datasets import load_digits
from torch_fidelity.metric_prc import calculate_precision_recall_part

from dimo_jax.evaluation.metrics import neighbours


def random_features(num_real, num_samples, dim=24):
    """Two sets that overlap in part, far from the origin as features are, with duplicates."""
    numbers = np.random.default_rng(0)
    scales = 1 / np.sqrt(1 + np.arange(dim))
    real = 5 + numbers.normal(size=(num_real, dim)) * scales
    samples = 5.2 + 0.9 * numbers.normal(size=(num_samples, dim)) * scales
    samples[:9], samples[9:12], real[:2] = real[20:29], samples[12:15], real[2:4]
    return real.astype(np.float32), samples.astype(np.float32)


def centred(real, samples, *arguments, **options):
    """As features are measured: distances between them are less exact than those of pixels."""
    mean = np.mean(real, axis=0, dtype=np.float64)
    sets = (neighbours.centred(x, mean) for x in (real, samples))
    return neighbours.precision_recall_density_coverage(*sets, *arguments, **options)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS_PER_DEVICE", 9)
    monkeypatch.setattr(neighbours, "COLUMNS", 64)


@pytest.mark.parametrize("sizes, k", [((150, 430), 3), ((430, 150), 3), ((150, 430), 5)])
def test_equals_prdc(small_blocks, sizes, k):
    real, samples = random_features(*sizes)
    found = centred(real, samples, k)
    assert 0.05 < found["precision"] < 0.95 and 0.05 < found["recall"] < 0.95
    assert found == compute_prdc(real, samples, k)


@pytest.mark.parametrize("sizes", [(700, 300), (300, 700)])
def test_equals_prdc_on_digits_with_ties_and_duplicates(sizes):
    digits, numbers = load_digits(return_X_y=True)[0] / 16, np.random.default_rng(0)
    order = numbers.permutation(len(digits))
    real, fake = digits[order[: sizes[0]]], digits[order[sizes[0] : sum(sizes)]].copy()
    fake += numbers.integers(-2, 3, fake.shape) / 16
    fake[:20], fake[20:40], fake[40:60] = fake[60:80], fake[60:80], real[:20]
    found = neighbours.precision_recall_density_coverage(real, fake, 5)
    assert 0.05 < found["precision"] < 0.95
    # The package takes roots, which are in the same order.
    assert found == pytest.approx(compute_prdc(real, fake, 5), abs=1e-12)


def test_closed_balls_equal_torch_fidelitys(small_blocks):
    real, samples = random_features(150, 430)
    real, samples = real[2:], samples[12:]  # exact ties are a matter of rounding there
    features = torch.from_numpy(samples).double(), torch.from_numpy(real).double()
    expected = calculate_precision_recall_part(*features)
    found = centred(real, samples, 3, closed=True)
    assert (found["precision"], found["recall"]) == pytest.approx(expected, abs=1e-7)


def test_an_example_on_the_edge_is_outside_unless_the_ball_is_closed(small_blocks):
    real, samples = np.array([[-1.0], [1.0]]), np.array([[-3.0], [3.0]])
    found = neighbours.precision_recall_density_coverage(real, samples, 1)
    assert found == {"precision": 0.0, "recall": 1.0, "density": 0.0, "coverage": 0.0}
    found = neighbours.precision_recall_density_coverage(real, samples, 1, closed=True)
    assert found == {"precision": 1.0, "recall": 1.0, "density": 1.0, "coverage": 1.0}


def test_parts_join_to_the_whole(small_blocks):
    """What each of several processes computes of its own rows."""
    real, samples = (neighbours.centred(x, np.full(24, 5.0)) for x in random_features(150, 430))
    parts = [slice(0, 50), slice(50, 121), slice(121, 121), slice(121, 150)]
    radii = np.concatenate([neighbours.squared_radii(real, 3, part) for part in parts])
    np.testing.assert_array_equal(radii, neighbours.squared_radii(real, 3))
    expected = np.sort(((real[:, None] - real[None]) ** 2).sum(-1), axis=1)[:, 3]
    np.testing.assert_allclose(radii, expected, rtol=1e-5, atol=1e-6)
    sample_radii = neighbours.squared_radii(samples, 3)
    parts = [part for part in parts if part.stop > part.start]
    found = neighbours.merge_inside(
        neighbours.inside(real[part], radii[part], samples, sample_radii) for part in parts
    )
    whole = neighbours.inside(real, radii, samples, sample_radii)
    for a, b in zip(found, whole, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_far_centre_costs_no_digits(small_blocks):
    real, samples = random_features(150, 430)
    near = centred(real, samples, 3)
    far = [x.astype(np.float64) + 1e5 for x in (real, samples)]
    assert centred(*far, 3) == near


def test_memory_does_not_grow_with_the_product(small_blocks, monkeypatch):
    shapes = []
    original = neighbours.squared_distances

    def watched(rows, others):
        shapes.append((rows.shape, others.shape))
        return original(rows, others)

    monkeypatch.setattr(neighbours, "squared_distances", watched)
    # Nothing else has 5 features: it is traced anew, for the two sets and between them.
    neighbours.precision_recall_density_coverage(*random_features(150, 430, dim=5), 3)
    assert shapes == [((72, 5), (64, 5))] * 3


def test_the_precision_is_the_highest():
    # A CPU has no other: only the program shows it.
    rows = np.zeros((4, 3), np.float32)
    text = str(jax.make_jaxpr(neighbours.squared_distances)(rows, rows))
    assert "Precision.HIGHEST, Precision.HIGHEST" in text


def test_too_few_examples_for_the_neighbours_are_refused(small_blocks):
    real, samples = random_features(40, 30)
    with pytest.raises(ValueError, match="no 30 neighbours among 30 examples"):
        neighbours.precision_recall_density_coverage(real, samples, 30)
