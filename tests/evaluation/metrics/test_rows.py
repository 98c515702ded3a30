"""Rows of several seeds as one."""

import dataclasses

import pytest

from dimo_jax.evaluation.metrics.rows import Row, Value, over_seeds

ROW = Row("generator", 1, {"fid": Value(1.0)}, {"sigma": 0.1}, {"fid": [Value(2.0), None]})


def test_seeds_give_mean_and_spread():
    other = dataclasses.replace(
        ROW, metrics={"fid": Value(3.0)}, per_class={"fid": [Value(5.0), Value(1.0)]}
    )
    found = over_seeds([ROW, other])
    assert found.metrics["fid"] == (2.0, pytest.approx(2**0.5))
    # A class without a value in one of the seeds has none.
    assert found.per_class["fid"] == [(3.5, pytest.approx(4.5**0.5)), None]
    assert (found.title, found.sampler) == ("generator, 1 step", {"sigma": 0.1})
    assert over_seeds([ROW]) == ROW
