"""The Fréchet distance against the packages that papers report it from."""

from tests.helpers import torch_peers  # noqa: F401

# isort: split

import numpy as np
import pytest
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from dimo_jax.evaluation.features import moments
from dimo_jax.evaluation.metrics import frechet


@pytest.fixture(scope="module")
def features():
    """Positive and of falling variances, as pooled activations are; float32, as they come."""
    numbers = np.random.default_rng(0)
    mix = numbers.normal(size=(96, 96)) / (1 + np.arange(96))[:, None]
    real = np.abs(numbers.normal(size=(400, 96)) @ mix + 0.3)
    samples = np.abs(1.1 * numbers.normal(size=(300, 96)) @ mix + 0.35)
    return real.astype(np.float32), samples.astype(np.float32)


def streamed(rows):
    stream = moments.Accumulator()
    for part in np.array_split(rows, 7):
        stream.add(part)
    return stream.sums().moments()


def test_streamed_moments_give_torch_fidelitys_fid(features):
    expected = fid_statistics_to_metric(
        *[fid_features_to_statistics(torch.from_numpy(x)) for x in features], verbose=False
    )["frechet_inception_distance"]
    found = frechet.frechet(*map(streamed, features))
    assert found.distance == pytest.approx(expected, rel=1e-6)
    assert found.distance > 1e3 * abs(found.distance - expected)  # not merely both nothing
    whole = frechet.frechet(frechet.moments(features[0]), features[1]).distance
    assert found.distance == pytest.approx(whole, rel=1e-9)


# SciPy 1.18 takes `disp` away, and these packages with it.
@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")
def test_equals_pytorch_fids(features):
    of_rows = [(x.mean(0), np.cov(x, rowvar=False)) for x in features]
    expected = calculate_frechet_distance(*of_rows[0], *of_rows[1])
    found = frechet.frechet(*map(streamed, features))
    assert found.distance == pytest.approx(expected, rel=1e-6)


def test_moments_of_a_file_in_float32_are_computed_with_in_float64(features):
    real, samples = (frechet.moments(x) for x in features)
    stored = frechet.Moments(*(x.astype(np.float32) for x in real))
    found = frechet.frechet(stored, samples)
    widened = frechet.Moments(*(x.astype(np.float64) for x in stored))
    assert found == frechet.frechet(widened, samples)
