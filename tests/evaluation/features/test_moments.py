import numpy as np
import pytest

from dimo_jax.evaluation.features import moments


@pytest.fixture
def features():
    numbers = np.random.default_rng(0)
    mix = numbers.normal(size=(6, 6))
    return (numbers.normal(size=(1000, 6)) @ mix + 3).astype(np.float32)


def check(found, features, rtol=1e-12):
    rows = features.astype(np.float64)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=rtol)
    expected = np.cov(rows, rowvar=False)
    np.testing.assert_allclose(found.covariance, expected, rtol=rtol, atol=rtol * 10)


@pytest.mark.parametrize("edges", [(500,), (1, 2, 3, 990), (0, 999), (10, 10, 700)])
def test_merged_parts_equal_the_whole(features, edges):
    parts = [moments.sums(part) for part in np.split(features, edges)]
    check(moments.merge(parts).moments(), features)
    check(moments.merge(parts[::-1]).moments(), features)
    # Merging changes none of the parts.
    np.testing.assert_array_equal(parts[0].scatter, moments.sums(features[: edges[0]]).scatter)


def test_merging_one_part_gives_it_back(features):
    part = moments.sums(features)
    merged = moments.merge([part])
    assert merged.count == 1000
    np.testing.assert_array_equal(merged.scatter, part.scatter)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_a_stream_equals_the_whole(features, batch_size, monkeypatch):
    monkeypatch.setattr(moments, "CHUNK_ROWS", 50)
    stream = moments.Accumulator()
    for start in range(0, len(features), batch_size):
        stream.add(features[start : start + batch_size])
        assert sum(map(len, stream.waiting)) < 50
    check(stream.sums().moments(), features)
    # Asking does not disturb, and more can follow.
    stream.add(features[:100])
    check(stream.sums().moments(), np.concatenate([features, features[:100]]))


def test_a_stream_owns_what_it_was_given(features):
    stream, buffer = moments.Accumulator(), features[:10].copy()
    stream.add(buffer)
    buffer[:] = 0
    stream.add(features[10:20])
    check(stream.sums().moments(), features[:20])


def test_a_large_mean_costs_no_digits(features):
    # The sum of squares less the squared sum would leave about 4 digits here, in float64.
    rows = features.astype(np.float64) + 1e6
    parts = [moments.sums(part) for part in np.array_split(rows, 9)]
    found = moments.merge(parts).moments().covariance
    np.testing.assert_allclose(found, np.cov(rows, rowvar=False), rtol=1e-9)


def test_further_axes_are_flattened(features):
    images = features.reshape(1000, 3, 2)
    found = moments.sums(images)
    assert found.scatter.shape == (6, 6)
    check(found.moments(), features)


def test_what_has_no_moments_is_refused(features):
    with pytest.raises(ValueError, match="two examples or more, found 1"):
        moments.sums(features[:1]).moments()
    with pytest.raises(ValueError, match="no features were added"):
        moments.Accumulator().sums()
    with pytest.raises(ValueError, match="nothing to merge"):
        moments.merge([])
    with pytest.raises(ValueError, match=r"different features: \[3, 6\]"):
        moments.merge([moments.sums(features), moments.sums(features[:, :3])])


def test_covariances_are_told_from_other_matrices():
    numbers = np.random.default_rng(3)
    # Fewer examples than features, so that most eigenvalues are 0 but for rounding.
    rows = numbers.normal(size=(40, 120)) * np.geomspace(1, 1e-3, 120) + 0.4
    single = rows.astype(np.float32)
    mean = single.mean(0)
    for matrix in (
        np.cov(rows.T),
        np.cov(single.T, dtype=np.float32),
        single.T @ single / np.float32(40) - np.outer(mean, mean),  # the least exact way
        np.zeros((5, 5)),
        np.eye(5) * 1e-12,
    ):
        assert moments.covariance_fault(matrix.astype(np.float64)) is None
    sigma = np.cov(rows.T)
    values, vectors = np.linalg.eigh(sigma)
    assert values[-1] > 0.5
    values[0] = -1e-3 * np.linalg.norm(sigma)
    negative = (vectors * values) @ vectors.T
    for matrix, words in (
        (-sigma, "has eigenvalues from -"),
        ((negative + negative.T) / 2, "has eigenvalues from -"),
        (np.triu(sigma), "is not symmetric"),
        (np.roll(sigma, 1, axis=0), "is not symmetric"),
    ):
        assert moments.covariance_fault(matrix).startswith(words)
