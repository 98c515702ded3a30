import dataclasses

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from dimo_jax import bundles
from dimo_jax.evaluation.features import classifier
from dimo_jax.evaluation.features.classifier import FeatureNetwork, FitSettings

# On one worker, which makes the fixtures once.
pytestmark = pytest.mark.xdist_group("features")

SETTINGS = FitSettings(
    channels=(16, 32),
    num_features=64,
    dropout=0.3,
    num_steps=300,
    batch_size=64,
    learning_rate=3e-3,
    weight_decay=1e-2,
    seed=0,
)
SHORT = dataclasses.replace(SETTINGS, channels=(2,), num_features=4, num_steps=3)


@pytest.fixture(scope="module")
def digits():
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    # The set's order is by writer: every fourth image leaves no writer out.
    test = np.arange(len(images)) % 4 == 3
    return (
        images[~test],
        labels[~test].astype(np.int32),
        images[test],
        labels[test].astype(np.int32),
    )


@pytest.fixture(scope="module")
def network(digits):
    return classifier.fit(digits[0], digits[1], 10, SETTINGS)


def test_unseen_digits_are_recognised(network, digits):
    assert np.mean(network.predict(digits[2]) == digits[3]) > 0.95


def test_features_know_the_class_and_all_vary(network, digits):
    train, test = network.features(digits[0]), network.features(digits[2])
    assert train.dtype == np.float32
    assert train.shape == (len(digits[0]), 64)
    assert np.all(train.std(axis=0) > 0.01)
    nearest = KNeighborsClassifier(1).fit(train, digits[1])
    assert nearest.score(test, digits[3]) > 0.95


def test_features_do_not_depend_on_the_batch(network, digits, monkeypatch):
    whole = network.features(digits[2][:100])
    monkeypatch.setattr(classifier, "BATCH_SIZE", 32)
    np.testing.assert_allclose(network.features(digits[2][:100]), whole, atol=1e-5)
    assert len(network.predict(digits[2][:33])) == 33


def test_the_same_seed_gives_the_same_classifier_and_another_one_another(digits):
    seeds = (0, 0, 1)
    first, again, other = (
        classifier.fit(digits[0], digits[1], 10, dataclasses.replace(SHORT, seed=s)) for s in seeds
    )
    assert first.params_hash == again.params_hash
    assert first.params_hash != other.params_hash


def test_a_kept_classifier_is_used_again(network, digits, tmp_path, monkeypatch):
    path = tmp_path / "new" / "classifier"
    monkeypatch.setattr(classifier, "fit", lambda *args: network)
    made = classifier.load_or_fit(path, digits[0], digits[1], 10, SETTINGS)
    monkeypatch.setattr(classifier, "fit", None)  # calling it now would fail
    kept = classifier.load_or_fit(path, digits[0], digits[1], 10, SETTINGS)
    assert made.params_hash == kept.params_hash == bundles.load(path).params_hash
    np.testing.assert_array_equal(kept.features(digits[2]), network.features(digits[2]))


@pytest.mark.parametrize("change", ["data", "labels", "settings", "damage"])
def test_a_classifier_of_anything_else_is_fitted_again(
    network, digits, tmp_path, change, caplog, monkeypatch
):
    path = tmp_path / "classifier"
    images, labels, settings = digits[0].copy(), digits[1].copy(), SETTINGS
    monkeypatch.setattr(classifier, "fit", lambda *args: network)
    classifier.load_or_fit(path, images, labels, 10, settings)
    if change == "data":
        images[5, 3, 3, 0] += 1 / 16
    elif change == "labels":
        labels[5] = (labels[5] + 1) % 10
    elif change == "settings":
        settings = dataclasses.replace(SETTINGS, learning_rate=1e-3)
    else:
        params_file = path / "params.msgpack"
        params_file.write_bytes(params_file.read_bytes()[:-3])
    new = FeatureNetwork(network.classifier, jax.tree.map(lambda x: x + 1, network.params))
    monkeypatch.setattr(classifier, "fit", lambda *args: new)
    found = classifier.load_or_fit(path, images, labels, 10, settings)
    assert found.params_hash == new.params_hash
    assert bundles.load(path).params_hash == new.params_hash
    assert ("again" in caplog.text) == (change == "damage")
