"""Precision and recall as each protocol has them, against prdc and a direct computation."""

import dataclasses

import numpy as np
import pytest
from prdc import compute_prdc

from dimo_jax.evaluation.metrics import neighbours, prdc
from dimo_jax.evaluation.metrics.protocols import PROTOCOLS


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS_PER_DEVICE", 9)
    monkeypatch.setattr(neighbours, "COLUMNS", 64)


@pytest.fixture(scope="module")
def features():
    numbers = np.random.default_rng(0)
    scales = 1 / np.sqrt(1 + np.arange(24))
    real = 0.5 + numbers.normal(size=(150, 24)) * scales
    samples = 0.7 + 0.9 * numbers.normal(size=(180, 24)) * scales
    return real.astype(np.float32), samples.astype(np.float32)


@pytest.mark.parametrize("name", ["dimo", "clean"])
def test_the_papers_form_is_prdcs_with_three_neighbours(features, name):
    found = prdc.measure(*features, PROTOCOLS[name])
    expected = compute_prdc(*features, nearest_k=3)
    assert found == {k: [x] for k, x in expected.items()}
    assert 0.05 < expected["precision"] < 0.95 and 0.05 < expected["recall"] < 0.95


def test_the_teachers_form_has_five_shuffled_parts(features):
    found = prdc.measure(*features, PROTOCOLS["valeo"])
    orders = [np.random.RandomState(2020).permutation(len(x)) for x in features]
    expected = [
        compute_prdc(*(x[order[i * len(x) // 5 : (i + 1) * len(x) // 5]] for x, order in pairs), 3)
        for i in range(5)
        for pairs in [list(zip(features, orders, strict=True))]
    ]
    assert found == {k: [part[k] for part in expected] for k in prdc.NAMES}
    assert len(set(found["precision"])) > 1


def adm_precision_recall(real, samples, dtype):
    """Closed balls of squared distances, computed in `dtype`."""

    def squares(a, b):
        a, b = a.astype(dtype), b.astype(dtype)
        products = (a.astype(np.float32) @ b.T.astype(np.float32)).astype(dtype)
        norms = (a * a).sum(1, dtype=np.float32).astype(dtype)[:, None] + (b * b).sum(
            1, dtype=np.float32
        ).astype(dtype)
        return np.maximum(norms - 2 * products, 0).astype(np.float32)

    radii = [np.sort(squares(x, x), axis=1)[:, 3] for x in (real, samples)]
    between = squares(real, samples)
    precision = (between <= radii[0][:, None]).any(axis=0).mean()
    return float(precision), float((between <= radii[1]).any(axis=1).mean())


def test_adms_form_is_of_closed_balls_in_half_precision(features):
    # Far from the origin, where half precision is coarse: distances become equal.
    real, samples = (x + 2 for x in features)
    found = prdc.measure(real, samples, PROTOCOLS["adm"])
    half = adm_precision_recall(real, samples, np.float16)
    single = adm_precision_recall(real, samples, np.float64)
    assert abs(half[0] - single[0]) > 0.015 and abs(half[1] - single[1]) > 0.015
    assert found["precision"][0] == pytest.approx(half[0], abs=0.01)
    assert found["recall"][0] == pytest.approx(half[1], abs=0.01)


def test_adms_form_falls_back_where_half_precision_overflows(features):
    large = [300 * x for x in features]
    found = prdc.measure(*large, PROTOCOLS["adm"])
    open_balls = compute_prdc(*large, nearest_k=3)
    assert found == {k: [pytest.approx(x, abs=1e-9)] for k, x in open_balls.items()}


def test_other_numbers_of_neighbours(features):
    protocol = dataclasses.replace(PROTOCOLS["dimo"], num_neighbours=5)
    expected = compute_prdc(*features, nearest_k=5)
    assert prdc.measure(*features, protocol) == {k: [x] for k, x in expected.items()}


def test_how_many_examples_are_needed(features):
    assert [prdc.least_number(PROTOCOLS[name]) for name in ("dimo", "valeo")] == [4, 20]
    real, samples = features
    prdc.measure(real[:20], samples[:20], PROTOCOLS["valeo"])
    with pytest.raises(ValueError, match="no 3 neighbours among 3 examples"):
        prdc.measure(real[:19], samples[:19], PROTOCOLS["valeo"])
