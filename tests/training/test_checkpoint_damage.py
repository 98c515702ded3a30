"""Checkpoints that cannot be read, and such that cannot be written."""

import errno
import gc
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest
from etils import epath

from dimo_jax.common.errors import InputError
from dimo_jax.parallel import distributed
from dimo_jax.training import checksums, orbax_manager
from tests.helpers.checkpoint_state import assert_same, make_state, opening


@pytest.fixture
def opened(tmp_path):
    yield from opening(tmp_path)


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


def damage_one_bit(directory):
    path = max((directory / "state").rglob("d/*"), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [damage_nothing_left, damage_meta, damage_tree, damage_truncate, damage_flip, damage_one_bit],
)
def test_damage_is_told_and_the_one_before_used_only_if_allowed(opened, damage):
    first = opened()
    for step in (1, 2):
        first.save(step, make_state(step, width=64), {"n": step})
    first.wait()
    damage(Path(first.directory) / "2")
    again = opened()
    with pytest.raises(InputError) as caught:
        again.restore(jax.eval_shape(lambda: make_state(width=64)))
    message = str(caught.value)
    assert f"{first.directory}/2 cannot be read" in message
    assert f"the one before is {first.directory}/1: give --config.checkpoint.allow_f" in message
    assert "\n" not in message
    assert sorted(p.name for p in Path(first.directory).iterdir()) == ["1", "2"]
    # What the message says works.
    allowed = opened(allow_fallback=True)
    state, meta = allowed.restore(make_state(width=64))
    assert_same(state, make_state(1, width=64))
    assert meta == {"n": 1} == allowed.meta() and allowed.latest() == 1
    assert sorted(p.name for p in Path(first.directory).iterdir()) == ["1", "2.damaged"]
    (sentence,) = allowed.set_aside
    assert f"{first.directory}/2 cannot be read" in sentence and "step 1 is used" in sentence
    # Its place is free again.
    allowed.save(2, make_state(2, width=64), {"n": 2})
    allowed.wait()
    assert opened().latest() == 2


@pytest.mark.slow
def test_damage_everywhere_is_told_everywhere_and_changes_nothing(opened):
    first = opened()
    for step in (1, 2, 3):
        first.save(step, make_state(step), {})
    first.wait()
    for step in (1, 2, 3):
        damage_tree(Path(first.directory) / str(step))
    with pytest.raises(InputError) as caught:
        opened(allow_fallback=True).restore(make_state())
    message = str(caught.value)
    assert all(f"{first.directory}/{step} cannot be read" in message for step in (1, 2, 3))
    assert "remove these directories to start again from step 0" in message
    assert sorted(p.name for p in Path(first.directory).iterdir()) == ["1", "2", "3"]


def test_a_second_fallback_from_the_same_step_finds_another_name(opened):
    for _ in range(2):
        checkpoints = opened(allow_fallback=True)
        for step in (1, 2):
            checkpoints.save(step, make_state(step), {})
        checkpoints.wait()
        damage_tree(Path(checkpoints.directory) / "2")
        assert int(opened(allow_fallback=True).restore(make_state())[0].step) == 1
    names = sorted(p.name for p in Path(checkpoints.directory).iterdir())
    assert names == ["1", "2.damaged", "2.damaged2"]


def test_another_tree_is_no_damage(opened):
    first = opened()
    for step, width in ((1, 4), (2, 5)):
        first.save(step, make_state(step, width), {})
    first.wait()
    with pytest.raises(InputError, match="2 holds another state"):
        opened(allow_fallback=True).restore(make_state(width=4))


def test_what_a_kill_left_of_a_removed_checkpoint_is_not_gone_back_to(opened):
    checkpoints = opened(keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step), {})
    checkpoints.wait()
    directory = Path(checkpoints.directory)
    # As a kill leaves it: a part of step 1, under its name.
    shutil.copytree(directory / "2", directory / "1")
    damage_nothing_left(directory / "1")
    again = opened(keep=2, allow_fallback=True)
    assert again.steps() == [2, 3]
    for step in (2, 3):
        damage_tree(directory / str(step))
    with pytest.raises(InputError) as caught:
        again.restore(make_state())
    assert f"{directory}/1 " not in str(caught.value)


def test_a_full_disk_is_named_and_the_finished_ones_stay(opened, monkeypatch, caplog):
    checkpoints = opened()
    checkpoints.save(1, make_state(1), {})
    checkpoints.wait()

    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(type(epath.Path("/x")), "write_text", full)
    checkpoints.save(2, make_state(2), {})
    with pytest.raises(InputError) as caught:
        checkpoints.wait()
    monkeypatch.undo()
    assert str(caught.value) == (
        f"checkpoint {checkpoints.directory}/2 cannot be written: the disk is full; the one of "
        "step 1 stays valid; once that is mended, the same command continues"
    )
    assert not [record for record in caplog.records if record.exc_info]
    checkpoints.wait()  # told once
    checkpoints.close()
    again = opened()
    assert again.latest() == 1 and int(again.restore(make_state())[0].step) == 1
    again.save(2, make_state(2), {})
    again.wait()
    assert again.latest() == 2


def threads_of_saves(before):
    found = [x for x in threading.enumerate() if x not in before and not x.daemon]
    found = [x for x in found if not x.name.startswith("metadata_store")]  # an idle pool
    for thread in found:  # the idle pools of closed event loops end by themselves
        threading.Thread.join(thread, 5)
    return [x.name for x in found if x.is_alive()]


def test_a_folder_that_cannot_be_made_leaves_no_thread_behind(opened, monkeypatch):
    checkpoints, before = opened(), set(threading.enumerate())
    checkpoints.save(1, make_state(1), {})
    checkpoints.wait()
    mkdir = type(epath.Path("/x")).mkdir

    def busy(self, *arguments, **options):
        if self.name.startswith("2."):
            raise OSError(errno.EBUSY, "Device or resource busy", str(self))
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(type(epath.Path("/x")), "mkdir", busy)
    with pytest.raises(InputError, match=r"ck/2 cannot be written: .*resource busy.*step 1 stays"):
        checkpoints.save(2, make_state(2), {})
        checkpoints.wait()
    assert threads_of_saves(before) == []


def test_what_a_failed_save_left_at_work_has_ended_when_it_is_told(opened, monkeypatch):
    checkpoints, before = opened(), set(threading.enumerate())
    checkpoints.save(1, make_state(1), {})
    checkpoints.wait()
    write_text, begun, ended = type(epath.Path("/x")).write_text, [], []

    def full_or_slow(self, *arguments, **options):
        if self.parent.name.startswith("meta"):
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        begun.append(self)
        time.sleep(0.5)
        ended.append(write_text(self, *arguments, **options))

    monkeypatch.setattr(type(epath.Path("/x")), "write_text", full_or_slow)
    with pytest.raises(InputError, match="the disk is full"):
        checkpoints.save(2, make_state(2), {})
        checkpoints.wait()
    assert len(begun) == len(ended) > 0  # none: this would test too little
    assert threads_of_saves(before) == []


def test_a_second_interrupt_waits_for_no_save(opened, monkeypatch):
    monkeypatch.setattr(distributed, "abandoned", threading.Event())
    checkpoints = opened()

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(orbax_manager.Manager, "wait_until_finished", interrupted)
        checkpoints.wait()
    assert distributed.must_leave()
    for name in ("wait_until_finished", "close"):
        monkeypatch.setattr(orbax_manager.Manager, name, lambda self: pytest.fail("waited"))
    checkpoints.wait()
    checkpoints.close()


HANGING = """
import os, signal, sys, threading, time
import jax.numpy as jnp
from etils import epath
from dimo_jax import cli
from dimo_jax.common.command_flags import Flags
from dimo_jax.training.checkpoints import Checkpoints

def main():
    # Ignored in what a shell starts in the background, such as the tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    checkpoints = Checkpoints(FLAGS.workdir, 2)
    write_text = type(epath.Path("/x")).write_text
    def hang(self, *arguments, **options):
        if self.parent.name.startswith("meta"):
            time.sleep(1000)
        return write_text(self, *arguments, **options)
    type(epath.Path("/x")).write_text = hang
    checkpoints.save(1, {"x": jnp.ones(3)}, {})
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    checkpoints.wait()

FLAGS = Flags()
flags.DEFINE_string("workdir", None, "of the checkpoints", flag_values=FLAGS)
cli.run(main, FLAGS)
"""


def test_a_save_on_a_disk_that_hangs_can_be_interrupted(tmp_path):
    arguments = [
        sys.executable,
        "-c",
        f"from absl import flags\n{HANGING}",
        f"--workdir={tmp_path}",
    ]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (130, "interrupted\n")


def test_abandoned_nothing_is_waited_for(opened, monkeypatch):
    checkpoints = opened()
    checkpoints.save(1, make_state(1), {})
    checkpoints.wait()
    monkeypatch.setattr(distributed, "abandoned", threading.Event())
    checkpoints.abandon()
    for name in ("wait_until_finished", "close"):
        monkeypatch.setattr(orbax_manager.Manager, name, lambda self: pytest.fail("waited"))
    checkpoints.wait()
    checkpoints.close()


@pytest.mark.slow
def test_checksums_that_are_gone_and_other_metadata_are_noticed(opened):
    checkpoints = opened()
    checkpoints.save(1, make_state(), {"run": "x", "rates": [0.1, 2], "by": {"10": 1, "9": 2}})
    checkpoints.wait()
    folder = Path(checkpoints.directory) / "1"
    sums, meta = folder / "state" / "checksums.json", folder / "meta" / "metadata"
    content, saved = sums.read_text(), json.loads(meta.read_text())
    opened().restore(make_state())
    sums.unlink()
    with pytest.raises(InputError, match="checksums.json, which was written with it, is missing"):
        opened().restore(make_state())
    sums.write_text("{" * 5000)
    with pytest.raises(InputError, match="is not JSON"):
        opened().restore(make_state())
    sums.write_text(content)
    meta.write_text(json.dumps({**saved, "run": "y"}))
    with pytest.raises(InputError, match="its metadata are not what was written"):
        opened().restore(make_state())
    with pytest.raises(InputError, match="its metadata are not what was written"):
        opened().meta()
    # One of before the metadata had a checksum is read as it was then.
    meta.write_text(json.dumps({name: x for name, x in saved.items() if name != "crc32"}))
    sums.unlink()
    assert opened().restore(make_state())[1]["run"] == "x"


@pytest.mark.slow
@pytest.mark.parametrize("damage", [damage_truncate, damage_flip])
def test_a_failed_restore_prints_nothing_but_its_error(opened, monkeypatch, caplog, damage):
    checkpoints = opened()
    checkpoints.save(1, make_state(width=64), {})
    checkpoints.wait()
    # As on an object store, so that the arrays themselves are where it is noticed.
    monkeypatch.setattr(checksums, "check", lambda folder, required: None)
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
