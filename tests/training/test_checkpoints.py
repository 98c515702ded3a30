import logging
import re
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint._src.serialization import serialization

from dimo_jax.common.errors import InputError
from tests.helpers.checkpoint_state import assert_same, make_state, opening


@pytest.fixture
def opened(tmp_path):
    yield from opening(tmp_path)


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


def test_counters_are_kept_beside_the_settings(opened):
    checkpoints = opened()
    checkpoints.save(1, make_state(1), {"seed": 0}, {"skipped": 3})
    checkpoints.save(2, make_state(2), {"seed": 0})
    checkpoints.wait()
    again = opened()
    assert again.counters(1) == {"skipped": 3} and again.counters() == {}
    assert again.meta(1) == again.meta() == {"seed": 0}
    assert again.restore(make_state(), step=1)[1] == {"seed": 0}


def mesh_shardings(shape):
    devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
    mesh = jax.sharding.Mesh(devices, ("data", "fsdp"))
    spec = {"kernel": ("fsdp",), "wide": (None, "fsdp"), "bias": (), "step": ()}
    return {name: NamedSharding(mesh, PartitionSpec(*axes)) for name, axes in spec.items()}


def test_a_checkpoint_of_one_mesh_is_read_on_another(opened):
    """From 8x1 and 1x8 to 2x2 on four of the devices, and to a single one."""
    random = np.random.default_rng(0)
    host = {
        "kernel": random.normal(size=(16, 3)).astype(np.float32),
        "wide": random.normal(size=(5, 8)).astype(jnp.bfloat16),
        "bias": random.normal(size=7).astype(np.float32),
        "step": np.int32(3),
    }
    checkpoints = opened()
    for step, shape in ((1, (8, 1)), (2, (1, 8))):
        checkpoints.save(step, jax.device_put(host, mesh_shardings(shape)), {})
    checkpoints.wait()
    one = dict.fromkeys(host, jax.sharding.SingleDeviceSharding(jax.devices()[3]))
    again = opened()
    for shardings in (mesh_shardings((2, 2)), one):
        like = {
            name: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=shardings[name])
            for name, x in host.items()
        }
        for step in (1, 2):
            restored, _ = again.restore(like, step=step)
            assert {name: x.sharding for name, x in restored.items()} == shardings
            assert_same(restored, host)


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


def test_a_write_that_a_failed_save_never_began_is_not_reported(opened):
    async def own():
        pass

    async def of_orbax():
        pass

    of_orbax.__qualname__ = "async_serialize_from_host.<locals>.write_fragment"
    code = serialization.async_serialize_from_host.__code__
    assert any(getattr(x, "co_qualname", "") == of_orbax.__qualname__ for x in code.co_consts)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        opened()
        for function in (of_orbax, own):
            function()
    (warning,) = warned
    assert f"coroutine '{own.__qualname__}' was never awaited" in str(warning.message)


def test_what_the_process_prints_is_as_before_once_all_are_closed(opened, monkeypatch):
    logger, record = logging.getLogger("absl"), logging.makeLogRecord({})
    record.pathname, record.exc_info = "/lib/orbax/x.py", (OSError, OSError(), None)
    said = []
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    both = [opened(name) for name in ("one", "two")]
    for closing in [None, *reversed(both)]:
        if closing is not None:
            closing.close()
        for text in ("Event loop is closed", "another"):
            sys.unraisablehook(SimpleNamespace(exc_value=text))
        said.append("logged" if logger.filter(record) else "not logged")
    quiet = ["another", "not logged"]
    expected = [*quiet, *quiet, "Event loop is closed", "another", "logged"]
    assert [getattr(x, "exc_value", x) for x in said] == expected
