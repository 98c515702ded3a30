import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from dimo_jax.evaluation.metrics import inception_score


@pytest.fixture
def logits():
    """

    from tests.helpers import torch_peers  # noqa: F401

    # isort: splitAs of a classifier that is sure of most images, whose classes are cycled."""
    numbers = np.random.default_rng(0)
    rows = numbers.normal(size=(1003, 20)).astype(np.float32)
    rows[np.arange(1003), np.arange(1003) % 20] += 6
    return rows


@pytest.mark.parametrize("num_splits", [1, 3, 10])
@pytest.mark.parametrize("shuffle", [True, False])
def test_equals_torch_fidelitys(logits, num_splits, shuffle):
    expected = isc_features_to_metric(torch.from_numpy(logits), num_splits, shuffle)
    seed = 2020 if shuffle else None
    splits = inception_score.torch_fidelity_splits(len(logits), num_splits, seed)
    found = inception_score.inception_score(logits, splits)
    assert found.mean == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert found.std == pytest.approx(expected["inception_score_std"], rel=1e-9, abs=1e-12)
    assert len(found.splits) == num_splits


def adm_score(logits, split_size):
    """The evaluator's arithmetic, in its float32."""
    e = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = e / e.sum(1, keepdims=True)
    scores = []
    for start in range(0, len(logits), split_size):
        p = probabilities[start : start + split_size]
        scores.append(np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(0)[None])), 1))))
    return float(np.mean(scores))


@pytest.mark.parametrize("split_size", [100, 500, 5000])
def test_equals_adms(logits, split_size):
    splits = inception_score.adm_splits(len(logits), split_size)
    found = inception_score.inception_score(logits, splits)
    assert found.mean == pytest.approx(adm_score(logits, split_size), rel=1e-6)


def test_adms_splits_are_runs_of_5000():
    splits = inception_score.adm_splits(12_000)
    assert np.bincount(splits).tolist() == [5000, 5000, 2000]
    assert np.all(np.diff(splits) >= 0)


def test_the_two_forms_differ_on_balanced_labels(logits):
    """With the labels cycled, a contiguous split is more balanced than a shuffled one."""
    shuffled = inception_score.torch_fidelity_splits(1000)
    contiguous = inception_score.adm_splits(1000, 100)
    scores = [
        inception_score.inception_score(logits[:1000], x).mean for x in (shuffled, contiguous)
    ]
    assert scores[0] < 0.97 * scores[1]


@pytest.mark.parametrize("parts", [2, 7])
def test_parts_of_the_samples_merge_to_the_whole(logits, parts, monkeypatch):
    monkeypatch.setattr(inception_score, "BLOCK_ROWS", 64)
    splits = inception_score.torch_fidelity_splits(len(logits))
    expected = isc_features_to_metric(torch.from_numpy(logits))["inception_score_mean"]
    # A process has every so-many-th sample, and need not have one of each split.
    several = [
        inception_score.sums(logits[i::parts], splits[i::parts], 10) for i in range(parts)
    ] + [inception_score.sums(logits[:0], splits[:0], 10)]
    found = inception_score.score(inception_score.merge(several))
    assert found.mean == pytest.approx(expected, rel=1e-12)


def test_bounds():
    """K classes, each certain and equally frequent: K. All images alike: 1."""
    certain = 1e4 * np.eye(8, dtype=np.float32)[np.arange(80) % 8]
    one_split = np.zeros(80, np.int64)
    assert inception_score.inception_score(certain, one_split).mean == pytest.approx(8)
    alike = np.broadcast_to(certain[:1], certain.shape)
    assert inception_score.inception_score(alike, one_split) == (1, 0, np.ones(1))


def test_empty_splits_are_refused(logits):
    with pytest.raises(ValueError, match="9 samples cannot be cut into 10 splits"):
        inception_score.torch_fidelity_splits(9)
    with pytest.raises(ValueError, match="one is empty"):
        inception_score.score(inception_score.sums(logits, np.zeros(1003, np.int64), 2))
