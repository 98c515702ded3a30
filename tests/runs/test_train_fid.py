"""Distances in the course of a training: the shares of processes, the names, the refusals."""

import jax
import numpy as np
import pytest

from dimo_jax import config as configs
from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.features import moments
from dimo_jax.parallel import distributed
from dimo_jax.runs import train_fid

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(12, 3))
REAL = RNG.uniform(size=(50, 2, 2, 3)).astype(np.float32)


def draw(labels, start):
    """Images that depend on their index and label alone."""
    index = np.arange(start, start + len(labels))
    values = np.sin(np.outer(index + 1, np.arange(1, 13)) + labels[:, None])
    return ((values + 1) / 2).astype(np.float32).reshape(-1, 2, 2, 3)


def features(images):
    return images.reshape(len(images), -1) @ WEIGHTS


def mean_distance(real, samples):
    return float(np.sum((real.mean - samples.mean) ** 2))


DISTANCE = train_fid.Distance(
    "distance", features, mean_distance, moments.sums(features(REAL)).moments()
)


@pytest.mark.parametrize(("num", "name"), [(21, "21"), (2000, "2k")])
def test_the_number_of_samples_is_in_the_name(num, name):
    labels = np.arange(num) % 4
    expected = features(draw(labels, 0)).mean(axis=0) - features(REAL).mean(axis=0)
    found = train_fid.evaluate(draw, DISTANCE, labels, 8)
    assert found == {f"interim/distance_{name}": pytest.approx(np.sum(expected**2))}


def test_processes_share_the_samples_and_the_lead_alone_has_the_figure(monkeypatch):
    labels = np.arange(21) % 4
    whole = train_fid.evaluate(draw, DISTANCE, labels, 8)
    drawn, packed = [], []

    def counted(some, start):
        drawn.extend(range(start, start + len(some)))
        return draw(some, start)

    def as_process(index, gathered):
        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(distributed, "gather_bytes", gathered)
        return train_fid.evaluate(counted, DISTANCE, labels, 4)

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    for index in (1, 2):
        assert as_process(index, lambda data: packed.append(data) or [data]) == {}
    found = as_process(0, lambda data: [data, *packed])
    assert sorted(drawn) == list(range(21))
    assert found == {name: pytest.approx(value, rel=1e-12) for name, value in whole.items()}


def test_too_few_samples_are_refused():
    with pytest.raises(InputError, match="config.interim.num_samples=1 is too few.*at least 2"):
        train_fid.evaluate(draw, DISTANCE, np.zeros(1, int), 8)


def section(**values):
    config = configs.default_config()
    config.interim.update({"every_steps": 10} | values)
    return config.to_dict()


def test_which_distance_is_measured():
    assert train_fid.configured(section(every_steps=0), 1, True) is None
    assert train_fid.configured(section(), 1, True) == "own"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "config.interim.features and config.interim.reference"),
        ({"features": "there"}, "needs config.interim.reference; give"),
        ({"reference": "there"}, "needs config.interim.features; give"),
    ],
)
def test_a_distance_that_lacks_a_part_is_refused(values, words):
    with pytest.raises(InputError, match=words):
        train_fid.configured(section(**values), 3, False)
    if values:
        with pytest.raises(InputError, match=words):
            train_fid.configured(section(**values), 3, True)


def test_the_fid_needs_moments(tmp_path, monkeypatch):
    path = tmp_path / "images.npz"
    np.savez(path, arr_0=np.zeros((3, 4, 4, 3), np.uint8))
    monkeypatch.setattr(train_fid.bundles, "load", lambda *_, **__: None)
    monkeypatch.setattr(train_fid.evaluate_images, "open_network", lambda *_: None)
    with pytest.raises(InputError, match="images.npz has no moments"):
        train_fid.configured(section(features="there", reference=str(path)), 3, False)
