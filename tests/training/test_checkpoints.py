import gc
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dimo_jax.errors import InputError
from dimo_jax.training.checkpoints import Checkpoints, changed_entries


class State(flax.struct.PyTreeNode):
    step: jax.Array
    params: Any
    opt: Any


def make_state(step=3, width=4):
    params = {
        "kernel": jax.random.normal(jax.random.key(step), (width, width)),
        "half": jnp.arange(5, dtype=jnp.bfloat16) / 3,
        "frozen": jnp.ones(2),
    }
    labels = {"kernel": "trained", "half": "trained", "frozen": "frozen"}
    tx = optax.partition({"trained": optax.adam(1e-3), "frozen": optax.set_to_zero()}, labels)
    return State(step=jnp.int32(step), params=params, opt=tx.init(params))


@pytest.fixture
def opened(tmp_path):
    managers = []

    def open_checkpoints(name="ck", keep=3):
        managers.append(Checkpoints(tmp_path / name, keep))
        return managers[-1]

    yield open_checkpoints
    for manager in managers:
        manager.close()


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_round_trip_keeps_bits_types_and_structure(opened):
    state, meta = make_state(), {"config": "abc", "sizes": [1, 2], "nothing": None}
    first = opened()
    assert first.latest() is None
    first.save(3, state, meta)
    first.wait()
    again = opened()
    assert again.latest() == 3 and again.meta() == meta
    restored, restored_meta = again.restore(jax.eval_shape(make_state))
    assert_same(restored, state)
    assert restored_meta == meta


def test_a_saved_state_may_be_donated_at_once(opened):
    # Large enough that writing takes far longer than the steps which reuse its memory.
    grow = jax.jit(lambda x: {"x": x["x"] + 1}, donate_argnums=0)
    state = grow({"x": jax.random.normal(jax.random.key(0), (2_000_000,))})
    expected = np.array(state["x"])
    checkpoints = opened()
    checkpoints.save(1, state, {})
    for _ in range(5):
        state = grow(state)
    jax.block_until_ready(state)
    restored, _ = checkpoints.restore(jax.eval_shape(lambda: {"x": jnp.zeros(2_000_000)}))
    np.testing.assert_array_equal(restored["x"], expected)


def test_keeps_the_newest_and_leaves_a_saved_step_alone(opened):
    checkpoints = opened(keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step), {"n": step})
    checkpoints.wait()
    checkpoints.save(3, make_state(9), {"n": 9})
    checkpoints.wait()
    assert sorted(p.name for p in Path(checkpoints.directory).iterdir()) == ["2", "3"]
    assert checkpoints.meta() == {"n": 3} and checkpoints.meta(2) == {"n": 2}
    assert int(checkpoints.restore(make_state(), step=2)[0].step) == 2


def test_restores_onto_the_shardings_asked_for(opened):
    checkpoints = opened()
    checkpoints.save(1, {"x": jnp.arange(16.0)}, {})
    sharding = NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data"))
    like = {"x": jax.ShapeDtypeStruct((16,), jnp.float32, sharding=sharding)}
    restored = checkpoints.restore(like)[0]["x"]
    assert restored.sharding == sharding
    np.testing.assert_array_equal(restored, np.arange(16.0))


def test_what_a_killed_save_leaves_is_removed(opened):
    first = opened()
    first.save(1, make_state(1), {})
    first.wait()
    first.save(2, make_state(2), {})
    first.wait()
    directory = Path(first.directory)
    # As a kill leaves it: half of step 2 under Orbax's temporary name.
    torn = directory / "2.orbax-checkpoint-tmp"
    (directory / "2").rename(torn)
    (torn / "commit_success.txt").unlink()
    shutil.rmtree(torn / "state")
    again = opened()
    assert again.latest() == 1
    assert int(again.restore(make_state())[0].step) == 1
    assert [p.name for p in directory.iterdir()] == ["1"]


def damage_nothing_left(directory):
    shutil.rmtree(directory / "state")


def damage_meta(directory):
    (directory / "meta" / "metadata").write_text("{")


def damage_tree(directory):
    (directory / "state" / "_METADATA").unlink()


def damage_truncate(directory):
    for path in (directory / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_flip(directory):
    # The array's own bytes; the largest file holds them.
    path = max((directory / "state").rglob("d/*"), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    for place in range(0, len(data), 7):
        data[place] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [damage_nothing_left, damage_meta, damage_tree, damage_truncate, damage_flip]
)
def test_damage_names_the_directory_to_remove(opened, damage):
    first = opened()
    for step in (1, 2):
        first.save(step, make_state(step, width=64), {})
    first.wait()
    damage(Path(first.directory) / "2")
    again = opened()
    with pytest.raises(InputError) as caught:
        again.restore(jax.eval_shape(lambda: make_state(width=64)))
    message = str(caught.value)
    assert f"{first.directory}/2 cannot be read" in message
    assert "remove that directory to continue from step 1" in message
    assert "\n" not in message
    # What the message says works.
    shutil.rmtree(f"{first.directory}/2")
    assert int(opened().restore(make_state(width=64))[0].step) == 1


def test_another_tree_is_listed_whole(opened):
    checkpoints = opened()
    checkpoints.save(1, make_state(), {})
    other = make_state(width=5)
    other = other.replace(params={**other.params, "new": jnp.zeros(1)})
    with pytest.raises(InputError) as caught:
        checkpoints.restore(other)
    message = str(caught.value)
    assert "missing params/new (1,)" in message
    assert "params/kernel: shape (4, 4), expected (5, 5)" in message
    assert re.search(r"opt/\S*mu/kernel: shape \(4, 4\), expected \(5, 5\)", message)


def test_no_checkpoint(opened):
    checkpoints = opened()
    with pytest.raises(InputError, match="no checkpoint in"):
        checkpoints.restore(make_state())
    with pytest.raises(InputError, match="no checkpoint of step 5"):
        checkpoints.restore(make_state(), step=5)


def test_changed_entries():
    saved = {"same": [1, 2], "lr": 0.1, "gone": None, "deep": {"a": 1, "b": {"c": 2}}}
    current = {"same": (1, 2), "lr": 0.2, "deep": {"a": 1, "b": {"c": 3}}, "new": "x"}
    assert changed_entries(saved, current) == [
        "lr: was 0.1, is 0.2",
        "gone: was None, is gone",
        "deep/b/c: was 2, is 3",
        "new: was not there, is 'x'",
    ]
    assert changed_entries(saved, saved) == []


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip])
def test_a_failed_restore_prints_nothing_but_its_error(opened, monkeypatch, caplog, damage):
    checkpoints = opened()
    checkpoints.save(1, make_state(width=64), {})
    checkpoints.wait()
    damage(Path(checkpoints.directory) / "1")
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    for _ in range(3):  # which reads are orphaned is a matter of timing
        with pytest.raises(InputError, match="remove that directory to start again"):
            opened().restore(make_state(width=64))
    gc.collect()
    assert unraisable == [] and caplog.records == []
    # What else goes wrong in the process is still told.
    sys.unraisablehook("another")
    assert unraisable == ["another"]
