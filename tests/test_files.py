"""Files and folders appear whole or not at all."""

import errno
import os

import pytest

from dimo_jax import files
from dimo_jax.errors import InputError


def names(folder):
    return sorted(x.name for x in folder.iterdir())


@pytest.mark.parametrize("name", ["a" * 256, "x/" + "\u00e9" * 128 + "/y", "a\0b", "\ud800"])
def test_names_that_no_disk_takes_are_refused(name):
    for read in (files.path, files.local):
        with pytest.raises(InputError, match="no name that a disk takes"):
            read(name)
    assert files.path("a" * 255).name == "a" * 255


def test_a_file_is_written_into_a_new_folder_and_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "x.bin"
    assert files.write_file(path, b"one") == path
    files.write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["x.bin"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_that_fails_half_way_stays_what_it_was(tmp_path, monkeypatch, call):
    path = files.write_file(tmp_path / "x.bin", b"one")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        files.write_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["x.bin"]


def test_the_reader_of_a_file_never_sees_half_of_it(tmp_path, monkeypatch):
    path = files.write_file(tmp_path / "x.bin", b"one")
    seen = []
    sync = os.fsync

    def look(descriptor):
        seen.append(path.read_bytes())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    files.write_file(path, b"two")
    assert seen == [b"one"]


def test_a_path_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (lambda p: files.write_file(p, b""), lambda p: files.write_folder(p, {"x": b""})):
        with pytest.raises(InputError, match="cannot write .*file/x: "):
            write(tmp_path / "file" / "x")
    with pytest.raises(InputError, match="cannot write .*file/new/x: "):
        files.check_writable(tmp_path / "file/new/x")
    files.check_writable(tmp_path / "new/x")
    assert [x.name for x in tmp_path.iterdir()] == ["file"]
    with pytest.raises(InputError, match="cannot write .*: Is a directory"):
        files.write_file(tmp_path, b"")


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "folder"
    files.write_folder(path, {"a": b"1", "inner/b": b"2"})
    assert (path / "inner" / "b").read_bytes() == b"2"
    files.write_folder(path, {"c": b"3"})
    assert names(path) == ["c"]
    assert names(path.parent) == ["folder"]


def test_leftovers_of_a_killed_process_do_not_stay(tmp_path):
    path = tmp_path / "folder"
    (tmp_path / ".folder.writing").mkdir()
    (tmp_path / ".folder.writing" / "half").write_text("")
    files.replaced(path).mkdir()
    files.write_folder(path, {"a": b"1"})
    assert names(path) == ["a"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_folder_that_fails_at_a_rename_stays_what_it_was(tmp_path, monkeypatch, failing):
    path = files.write_folder(tmp_path / "folder", {"a": b"1"})
    calls = []
    rename = os.rename

    def fail_once(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(InputError, match="Input/output error"):
        files.write_folder(path, {"b": b"2"})
    assert names(path) == ["a"]
    assert names(tmp_path) == ["folder"]


def test_at_the_moment_between_the_renames_the_old_folder_is_complete(tmp_path, monkeypatch):
    path = files.write_folder(tmp_path / "folder", {"a": b"1"})
    rename = os.rename
    seen = []

    def look(source, target):
        rename(source, target)
        seen.append((path.exists(), names(files.replaced(path))))

    monkeypatch.setattr(os, "rename", look)
    files.write_folder(path, {"b": b"2"})
    assert seen == [(False, ["a"]), (True, ["a"])]


def test_the_current_folder_can_be_named_by_a_dot(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    files.write_folder(".", {"a": b"1"})
    assert names(tmp_path / "here") == ["a"]
