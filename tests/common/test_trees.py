from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax.common import trees
from dimo_jax.common.errors import InputError


class Pair(NamedTuple):
    left: object
    right: object


TREE = {"block": Pair(np.zeros((2, 3), np.float32), [np.ones(4, np.int32)]), "bias": np.zeros(1)}


def test_names_of_dicts_attributes_and_indices():
    assert list(trees.named_leaves(TREE)) == ["bias", "block/left", "block/right/0"]


def test_map_named_keeps_the_structure():
    mapped = trees.map_named(lambda name, leaf: (name, leaf.size), TREE)
    assert mapped == {
        "block": Pair(("block/left", 6), [("block/right/0", 4)]),
        "bias": ("bias", 1),
    }


def test_matches_searches_anywhere_unless_anchored():
    assert trees.matches(["nothing", "left"], "block/left")
    assert not trees.matches(["^left"], "block/left")
    assert not trees.matches([], "block/left")


def test_fingerprint_sees_every_change():
    base = {"a": np.arange(6, dtype=np.float32), "b": np.zeros(2, np.int32)}
    others = [
        {**base, "a": np.nextafter(base["a"], np.float32(9))},
        {**base, "a": base["a"].reshape(2, 3)},
        {**base, "b": np.zeros(2, np.uint32)},  # the same bytes
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"]},
    ]
    digests = {trees.fingerprint(tree) for tree in [base, *others]}
    assert len(digests) == 6


def test_fingerprint_ignores_order_memory_layout_and_kind_of_array():
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    a = trees.fingerprint({"x": matrix, "y": np.ones(1, np.float32)})
    b = trees.fingerprint({"y": jnp.ones(1), "x": np.asfortranarray(matrix)})
    assert a == b


def test_differences_lists_each_kind_once():
    expected = {
        "same": jax.ShapeDtypeStruct((2,), jnp.float32),
        "shape": jax.ShapeDtypeStruct((2, 3), jnp.float32),
        "dtype": jax.ShapeDtypeStruct((2,), jnp.float32),
        "gone": jax.ShapeDtypeStruct((5,), jnp.float32),
    }
    found = {
        "same": np.zeros(2, np.float32),
        "shape": np.zeros((3, 2), np.float32),
        "dtype": np.zeros(2, np.int32),
        "new": np.zeros((1, 4), np.float32),
    }
    assert sorted(trees.differences(found, expected)) == [
        "dtype: dtype int32, expected float32",
        "missing gone (5,)",
        "shape: shape (3, 2), expected (2, 3)",
        "unknown new (1, 4)",
    ]
    assert trees.differences(expected, expected) == []


def test_values_that_are_not_finite_are_counted_by_name():
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    bad = whole.copy()
    bad[0, 1], bad[2, 2], bad[1, 0] = np.nan, np.inf, -np.inf
    trees.check_finite({"a": whole, "n": np.arange(3), "b": jnp.asarray(whole, jnp.bfloat16)}, "x")
    tree = {"whole": whole, "block": {"kernel": bad, "bias": jnp.asarray(bad, jnp.bfloat16)}}
    with pytest.raises(InputError) as caught:
        trees.check_finite(tree, "the teacher")
    assert str(caught.value) == (
        "the teacher has values that are not finite numbers: block/bias (3 of 12), "
        "block/kernel (3 of 12); give weights without them"
    )
    with pytest.raises(InputError, match=r"a4 \(3 of 12\), and 2 more tensors; give"):
        trees.check_finite({f"a{i}": bad for i in range(7)}, "x")
