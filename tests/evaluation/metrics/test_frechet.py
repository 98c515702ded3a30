import numpy as np
import pytest
import scipy.linalg
from sklearn.datasets import load_digits

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
    assert frechet.frechet(frechet.moments(a), b).distance == pytest.approx(expected, rel=1e-9)
    assert frechet.frechet(frechet.moments(b), a).distance == pytest.approx(expected, rel=1e-9)


def test_frechet_of_digits_whose_border_pixels_never_vary(digits):
    # Both covariances are singular, which scipy's root refuses: the eigenvalues of the product.
    a, b = digits[:900].reshape(900, -1), digits[900:].reshape(897, -1)
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    assert np.linalg.matrix_rank(c1) < 64
    roots = np.sqrt(np.linalg.eigvals(c1 @ c2).astype(complex)).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(c1 + c2) - 2 * roots.sum()
    found = frechet.frechet(frechet.moments(digits[:900]), digits[900:]).distance
    assert found == pytest.approx(expected, rel=1e-6)


def test_frechet_with_fewer_samples_than_dimensions_equals_the_nuclear_norm(generator):
    a, b = generator.normal(size=(20, 50)), generator.normal(0.5, 1.5, size=(30, 50))
    x, y = a - a.mean(0), b - b.mean(0)
    cross = np.linalg.norm(x @ y.T, "nuc") / np.sqrt((len(a) - 1) * (len(b) - 1))
    traces = a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum()
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + traces - 2 * cross
    assert frechet.frechet(frechet.moments(a), b).distance == pytest.approx(expected, rel=1e-6)


def test_few_samples_have_the_distance_of_their_moments(generator):
    real, few = generator.normal(size=(60, 24)) ** 2, generator.normal(size=(7, 4, 6))
    moments = frechet.moments(real)
    found, of_moments = (
        frechet.frechet(moments, few),
        frechet.frechet(moments, frechet.moments(few)),
    )
    # The moments' product has eigenvalues of rounding in place of zeros, whose roots count.
    assert tuple(found) == pytest.approx(tuple(of_moments), rel=1e-6)


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
