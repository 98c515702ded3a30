"""Files and folders appear whole or not at all."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from dimo_jax.common import files, temporaries
from dimo_jax.common.errors import InputError


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
    with pytest.raises(InputError, match="cannot write .*: it is a folder; name a file"):
        files.write_file(tmp_path, b"")


def any_folder(_):
    """For write_folder: whatever is there may be replaced."""


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "folder"
    files.write_folder(path, {"a": b"1", "inner/b": b"2"})
    assert (path / "inner" / "b").read_bytes() == b"2"
    files.write_folder(path, {"c": b"3"}, any_folder)
    assert names(path) == ["c"]
    assert names(path.parent) == ["folder"]


def test_a_folder_is_replaced_only_if_its_writer_knows_all_of_it(tmp_path):
    path = files.write_folder(tmp_path / "folder", {"a": b"1", "b": b"2"})
    asked = []

    def foreign(folder):
        asked.append(names(folder))
        return "b"

    for own in (foreign, files.anything):
        with pytest.raises(InputError, match="folder holds [ab], which writing would delete"):
            files.write_folder(path, {"c": b"3"}, own)
        with pytest.raises(InputError, match="folder holds [ab], which writing would delete"):
            files.check_folder(path, own)
    assert names(path) == asked[0] == ["a", "b"] and names(tmp_path) == ["folder"]


def test_what_comes_into_a_folder_while_it_is_written_stays(tmp_path):
    path = files.write_folder(tmp_path / "folder", {})

    def pairs():
        yield "a", b"1"
        (path / "thesis.txt").write_text("x")

    with pytest.raises(InputError, match="folder holds thesis.txt"):
        files.write_folder(path, pairs())
    assert names(path) == ["thesis.txt"] and names(tmp_path) == ["folder"]


WRITER = """
import os, signal, sys
from dimo_jax.common import files
place, what = sys.argv[1:]
def pieces():
    yield b"new "
    os.kill(os.getpid(), signal.SIGKILL)
if what == "folder":
    files.write_folder(place, {"a": b"new", "inner/b": pieces()}, lambda folder: None)
elif what == "file":
    with files.writing(place) as file:
        file.writelines(pieces())
else:
    calls, rename = [], os.rename
    def killed(*arguments):
        calls.append(rename(*arguments))
        if len(calls) == int(what):
            os.kill(os.getpid(), signal.SIGKILL)
    os.rename = killed
    files.write_folder(place, {"a": b"new"}, lambda folder: None)
"""


@pytest.mark.parametrize(
    ("what", "found"),
    [("folder", b"old"), ("file", b"old"), ("1", None), ("2", b"new"), ("3", b"new")],
)
def test_kill_9_leaves_the_old_or_the_new_and_the_next_writer_cleans_up(tmp_path, what, found):
    path = tmp_path / "x"
    if what == "file":
        path.write_bytes(b"old")
    else:
        files.write_folder(path, {"a": b"old"})
    killed = subprocess.run([sys.executable, "-c", WRITER, path, what], check=False)
    assert killed.returncode == -signal.SIGKILL
    # Between the two renames of a folder the old one is beside.
    kept = files.replaced(path) if found is None else path
    assert (kept if what == "file" else kept / "a").read_bytes() == (found or b"old")
    assert len(names(tmp_path)) > 1
    temporaries.remove_leftovers.cache_clear()
    if what == "file":
        files.write_file(path, b"3")
    else:
        files.write_folder(path, {"a": b"3"}, any_folder)
        assert (path / "a").read_bytes() == b"3"
    assert names(tmp_path) == ["x"]


def test_what_a_living_process_is_writing_is_left_to_it(tmp_path):
    with files.writing(tmp_path / "x") as file:
        file.write(b"one")
        assert len(names(tmp_path)) == 1
        temporaries.remove_leftovers.cache_clear()
        files.write_file(tmp_path / "x", b"two")
        files.write_folder(tmp_path / "y", {"a": b"1"})
        assert len(names(tmp_path)) == 3
    assert (tmp_path / "x").read_bytes() == b"one" and names(tmp_path) == ["x", "y"]


def test_a_planted_name_is_never_followed(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "a").write_text("mine")
    for name in (".x.writing", ".x.0123456789ab.writing"):
        (tmp_path / name).symlink_to("secret")
    for name in (".y.writing", ".y.0123456789ab.writing"):
        (tmp_path / name).symlink_to("secrets")
    monkeypatch.setattr(temporaries.secrets, "token_hex", lambda _: "0123456789ab")
    with pytest.raises(InputError, match="cannot write .*: File exists"):
        files.write_file(tmp_path / "x", b"new")
    with pytest.raises(InputError, match="cannot write .*: File exists"):
        files.write_folder(tmp_path / "y", {"a": b"new"})
    monkeypatch.undo()
    files.write_file(tmp_path / "x", b"new")
    files.write_folder(tmp_path / "y", {"a": b"new"})
    assert (tmp_path / "secret").read_text() == (tmp_path / "secrets" / "a").read_text() == "mine"
    assert not (tmp_path / "x").is_symlink() and not (tmp_path / "y").is_symlink()


def test_a_link_where_the_old_folder_steps_aside_is_in_the_way(tmp_path):
    path = files.write_folder(tmp_path / "y", {"a": b"1"})
    (tmp_path / "mine").mkdir()
    files.replaced(path).symlink_to("mine")
    with pytest.raises(InputError, match="y.replaced is in the way; move it elsewhere"):
        files.write_folder(path, {"b": b"2"}, any_folder)
    assert names(path) == ["a"] and names(tmp_path) == [".y.replaced", "mine", "y"]


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
        files.write_folder(path, {"b": b"2"}, any_folder)
    assert names(path) == ["a"]
    assert names(tmp_path) == ["folder"]


def test_the_current_folder_can_be_named_by_a_dot(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    files.write_folder(".", {"a": b"1"})
    assert names(tmp_path / "here") == ["a"]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("file", "folder"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
        with pytest.raises(InputError, match=f"{name} is a link to .*, which is not there"):
            files.check_writable(tmp_path / name)
    files.write_file(tmp_path / "disk" / "file", b"1")
    files.write_folder(tmp_path / "disk" / "folder", {"a": b"1"})
    files.check_writable(tmp_path / "file")
    files.write_file(tmp_path / "file", b"2")
    files.write_folder(tmp_path / "folder", {"b": b"2"}, any_folder)
    assert (tmp_path / "disk" / "file").read_bytes() == b"2" and names(tmp_path / "folder") == ["b"]
    assert (tmp_path / "file").is_symlink() and (tmp_path / "folder").is_symlink()
    assert names(tmp_path) == ["disk", "file", "folder"]
    assert names(tmp_path / "disk") == ["file", "folder"]


def test_new_files_have_the_usual_permissions(tmp_path):
    files.write_file(tmp_path / "x", b"1")
    files.write_folder(tmp_path / "y", {"a": b"1"})
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "x").write_text("")
    mode = {x: (tmp_path / x).stat().st_mode for x in ("x", "y", "y/a", "usual", "usual/x")}
    assert mode["x"] == mode["y/a"] == mode["usual/x"] and mode["y"] == mode["usual"]


def test_an_empty_path_names_nothing():
    with pytest.raises(InputError, match="an empty path names nothing"):
        files.path("")
