import numpy as np
import pytest
import scipy.linalg
from prdc import compute_prdc
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from dimo_jax.evaluation.metrics import frechet


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)[0].reshape(-1, 8, 8, 1) / 16


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def scipy_frechet(a, b):
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2).real
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(c1 + c2 - 2 * root)


def test_frechet_equals_the_matrix_root_of_scipy(generator):
    mix = generator.normal(size=(12, 12))
    a, b = generator.normal(size=(300, 12)) @ mix, generator.normal(1.0, 2.0, size=(200, 12))
    expected = scipy_frechet(a, b)
    assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet.frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_digits_whose_border_pixels_never_vary(digits):
    # Both covariances are singular, which scipy's root refuses: the eigenvalues of the product.
    a, b = digits[:900].reshape(900, -1), digits[900:].reshape(897, -1)
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    assert np.linalg.matrix_rank(c1) < 64
    roots = np.sqrt(np.linalg.eigvals(c1 @ c2).astype(complex)).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(c1 + c2) - 2 * roots.sum()
    found = frechet.frechet_distance(digits[:900], digits[900:])
    assert found == pytest.approx(expected, rel=1e-6)


def test_frechet_with_fewer_samples_than_dimensions_equals_the_nuclear_norm(generator):
    a, b = generator.normal(size=(20, 50)), generator.normal(0.5, 1.5, size=(30, 50))
    x, y = a - a.mean(0), b - b.mean(0)
    cross = np.linalg.norm(x @ y.T, "nuc") / np.sqrt((len(a) - 1) * (len(b) - 1))
    traces = a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum()
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + traces - 2 * cross
    assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_terms_and_percent_in_closed_form(generator):
    real = generator.normal(size=(400, 3))
    samples = real * 3 + np.array([1.0, 2.0, -2.0])
    moments = frechet.moments(real), frechet.moments(samples)
    found = frechet.frechet(*moments)
    variance = real.var(0, ddof=1).sum()
    shift = np.sum((samples.mean(0) - real.mean(0)) ** 2)
    # Same axes, deviations three times as large: (3 - 1)^2 of the variance.
    assert found.distance == pytest.approx(shift + 4 * variance)
    assert found.mean_term == pytest.approx(shift)
    assert found.traces == pytest.approx(10 * variance)
    assert found.cross_term == pytest.approx(6 * variance)
    assert frechet.frechet_percent(*moments) == pytest.approx(100 * shift / variance + 400)


def test_percent_of_a_constant_set_at_the_real_mean_is_100(digits):
    constant = np.broadcast_to(digits.mean(0), (10, *digits.shape[1:]))
    moments = frechet.moments(digits), frechet.moments(constant)
    assert frechet.frechet_percent(*moments) == pytest.approx(100)


def test_one_example_has_no_covariance():
    with pytest.raises(ValueError, match="two examples"):
        frechet.moments(np.zeros((1, 4)))


@pytest.mark.parametrize("sizes", [(700, 300), (300, 700)])
def test_prdc_equals_its_authors_on_digits_with_ties_and_duplicates(digits, generator, sizes):
    order = generator.permutation(len(digits))
    real = digits[order[: sizes[0]]].reshape(sizes[0], -1)
    fake = digits[order[sizes[0] : sum(sizes)]].reshape(sizes[1], -1).copy()
    fake += generator.integers(-2, 3, fake.shape) / 16
    fake[:20], fake[20:40], fake[40:60] = fake[60:80], fake[60:80], real[:20]
    expected = compute_prdc(real, fake, 5)
    found = frechet.precision_recall_density_coverage(real, fake, 5)
    assert 0.05 < found["precision"] < 0.95
    assert found == pytest.approx(expected, abs=1e-12)


def test_prdc_does_not_depend_on_the_block_size(digits, monkeypatch):
    real, fake = digits[:150], digits[150:400] * 0.8
    whole = frechet.precision_recall_density_coverage(real, fake, 3)
    monkeypatch.setattr(frechet, "BLOCK_ROWS", 7)
    assert frechet.precision_recall_density_coverage(real, fake, 3) == whole


def test_prdc_of_an_exact_tie_counts_as_outside():
    # Neighbours at distance 1 on a line; the only samples lie exactly on the real balls' edges.
    real = np.array([[0.0], [1.0]])
    samples = np.array([[-1.0], [2.0]])
    found = frechet.precision_recall_density_coverage(real, samples, 1)
    assert found == {"precision": 0.0, "recall": 1.0, "density": 0.0, "coverage": 0.0}


def test_prdc_never_holds_a_full_distance_matrix(generator, monkeypatch):
    monkeypatch.setattr(frechet, "BLOCK_ROWS", 16)
    seen = []
    original = frechet.squared_distances

    def watched(rows, others):
        for part, squares in original(rows, others):
            seen.append(squares.shape)
            yield part, squares

    monkeypatch.setattr(frechet, "squared_distances", watched)
    rows = generator.normal(size=(100, 3))
    frechet.precision_recall_density_coverage(rows, rows + 0.1, 2)
    assert seen
    assert max(rows for rows, _ in seen) == 16


def test_too_few_examples_for_the_neighbours_are_refused():
    with pytest.raises(ValueError, match="no 5 neighbours among 5"):
        frechet.precision_recall_density_coverage(np.zeros((9, 2)), np.zeros((5, 2)), 5)


def test_nearest_equals_sklearn(digits, monkeypatch):
    monkeypatch.setattr(frechet, "BLOCK_ROWS", 30)
    samples, training = digits[:100] * 0.9, digits[100:600]
    peer = NearestNeighbors(n_neighbors=1).fit(training.reshape(500, -1))
    expected_distance, expected_index = peer.kneighbors(samples.reshape(100, -1))
    index, distance = frechet.nearest(samples, training)
    np.testing.assert_array_equal(index, expected_index[:, 0])
    np.testing.assert_allclose(distance, expected_distance[:, 0], rtol=1e-9)


def test_planted_duplicates_are_counted_once_each(generator):
    samples = generator.integers(0, 17, (50, 64)).astype(np.int32)
    assert frechet.share_of_duplicates(samples) == 0
    samples[10] = samples[30] = samples[40] = samples[3]  # three equal an earlier one
    samples[49] = samples[48]
    assert frechet.share_of_duplicates(samples) == pytest.approx(4 / 50)


def test_planted_copies_are_counted_and_near_ones_are_not(digits):
    training, samples = digits[:500].astype(np.float32), digits[500:600].astype(np.float32)
    before = frechet.share_of_copies(samples, training)
    samples[7], samples[9], samples[11] = training[3], training[3], training[4]
    samples[12] = training[5]
    samples[12, 0, 0, 0] += 1e-6
    assert before == 0
    assert frechet.share_of_copies(samples, training) == pytest.approx(3 / 100)


def test_negative_zero_equals_zero():
    rows = np.array([[0.0, 1.0], [-0.0, 1.0]])
    assert frechet.share_of_duplicates(rows) == 0.5
    assert frechet.share_of_copies(rows[1:], rows[:1]) == 1


def test_copies_of_another_dtype_are_refused_rather_than_never_found():
    with pytest.raises(ValueError, match="dtypes differ"):
        frechet.share_of_copies(np.zeros((2, 2), np.int64), np.zeros((2, 2), np.int32))


def test_entropy_in_closed_form():
    constant = np.full((8, 3), 2)
    assert frechet.token_entropy(constant, 5) == 0
    uniform = np.stack([np.arange(16), np.arange(16)[::-1]], axis=1)
    assert frechet.token_entropy(uniform, 16) == pytest.approx(4)
    # A quarter of code 1: 2 - 0.75 log2(3) bits; the constant position beside it halves the mean.
    quarter = np.array([[0, 9], [0, 9], [0, 9], [1, 9]])
    expected = (2 - 0.75 * np.log2(3)) / 2
    assert frechet.token_entropy(quarter, 10) == pytest.approx(expected)


def test_entropy_refuses_a_mask_token():
    with pytest.raises(ValueError, match="codes: 16"):
        frechet.token_entropy(np.array([[0, 16]]), 16)


def test_accuracy():
    assert frechet.accuracy(np.array([1, 2, 3, 3]), np.array([1, 2, 3, 4])) == 0.75
