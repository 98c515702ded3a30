"""gs:// by its real protocol: what a run leaves there is what it would leave on a disk."""

import contextlib
import io
import json
import os
import sys
import time
from unittest import mock

import fsspec
import numpy as np
import pytest
from etils import epath

from dimo_jax import bundles
from dimo_jax.commands.sample import check_output
from dimo_jax.common import files, images, run_lock
from dimo_jax.common import object_store as stores
from dimo_jax.common.errors import InputError
from dimo_jax.data import digits
from dimo_jax.evaluation.report import page_pictures, run_folders, schema
from dimo_jax.generation import sample_files
from tests.helpers import object_store
from tests.helpers.command_line import save_tiny
from tests.helpers.object_store import names


@pytest.fixture(scope="module")
def store():
    fsspec.config.conf.pop("gs", None)
    stores.open_store.cache_clear()
    with object_store.running() as (server, environment), mock.patch.dict(os.environ, environment):
        yield server


@pytest.fixture
def folder(store):
    yield files.path("gs://bucket/run")
    store.wipe(keep_buckets=True)


def behind_our_back(store, name, data):
    """Writes an object as another process would."""
    entry = {"generation": "7", "name": name, "size": str(len(data)), "bucket": "bucket"}
    store._storage.create_file("bucket", name, data, entry)


def test_a_path_is_what_was_typed(store, tmp_path):
    found = files.path("gs://bucket/run/a")
    assert isinstance(found, epath.Path) and str(found / "b") == "gs://bucket/run/a/b"
    assert files.path(found) is found
    assert files.path(str(tmp_path)) == tmp_path and files.path(tmp_path) is not None
    assert not files.is_remote("runs/digits") and files.is_remote(found)
    for wrong in ("gs:///run", "ftp://host/run", "https://host/run"):
        with pytest.raises(InputError, match="gs://bucket/... or s3://bucket/..."):
            files.path(wrong)
    with pytest.raises(InputError, match="gs://bucket/x is not on a disk"):
        files.local("gs://bucket/x")


def test_the_missing_package_is_named_at_the_door(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=r's3:// needs the package s3fs.*pip install -e "\.\[s3\]'):
        files.path("s3://bucket/run")


def test_a_store_that_does_not_answer_is_one_sentence(folder, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("401 Anonymous caller\nmany more lines")

    monkeypatch.setattr(type(folder), "exists", fail)
    with pytest.raises(InputError, match=r"cannot reach gs://bucket/run \(RuntimeError: 401 Anon"):
        files.path("gs://bucket/run")
    with pytest.raises(InputError, match="cannot write gs://nowhere/x .*check the address"):
        files.write_file(epath.Path("gs://nowhere/x"), b"")


def test_what_another_process_wrote_is_seen(folder, store):
    files.write_file(folder / "a", b"1")
    assert [x.name for x in folder.iterdir()] == ["a"] and not (folder / "b").exists()
    behind_our_back(store, "run/b", b"2")
    assert (folder / "b").exists() and (folder / "b").read_bytes() == b"2"
    assert sorted(x.name for x in folder.iterdir()) == ["a", "b"]


def test_a_file_takes_its_name_when_it_is_whole(folder, store):
    with files.writing(folder / "deep" / "x") as file:
        file.write(b"one")
        assert names(store) == []
    assert (folder / "deep" / "x").read_bytes() == b"one"
    with contextlib.suppress(KeyboardInterrupt), files.writing(folder / "deep" / "x") as file:
        file.write(b"two")
        raise KeyboardInterrupt
    assert (folder / "deep" / "x").read_bytes() == b"one"
    assert files.write_file(folder / "deep" / "x", b"three") == folder / "deep" / "x"
    assert object_store.objects(store) == {"run/deep/x": b"three"}


def test_the_first_file_of_a_folder_goes_first_and_comes_last(folder, store):
    def pairs(number):
        yield "config.json", number
        seen.append(names(store))
        yield "inner/params", iter([number, number])
        seen.append(names(store))
        yield number.decode(), number

    seen = []
    assert files.write_folder(folder, pairs(b"1")) == folder
    files.write_folder("gs://bucket/run", pairs(b"2"), lambda folder: None)
    assert object_store.objects(store) == {
        "run/config.json": b"2",
        "run/inner/params": b"22",
        "run/2": b"2",
    }
    assert seen == [[], ["run/inner/params"], *[["run/1", "run/inner/params"]] * 2]
    files.write_file("gs://bucket/run2", b"a neighbour")
    files.remove_folder(folder)
    assert names(store) == ["run2"]


def test_a_folder_whose_writing_broke_off_is_not_complete(folder, store):
    def pairs():
        yield "config.json", b"new"
        yield "a", b"new"
        raise KeyboardInterrupt

    files.write_folder(folder, {"config.json": b"old", "a": b"old"})
    with pytest.raises(KeyboardInterrupt):
        files.write_folder(folder, pairs(), lambda folder: None)
    assert names(store) == ["run/a"]
    with pytest.raises(InputError, match="run holds a, which writing would delete"):
        files.write_folder(folder, {"config.json": b"new"})
    assert names(store) == ["run/a"]


def test_a_bundle_is_read_back_and_half_of_one_never(folder, store, monkeypatch):
    path = folder / "export"
    assert save_tiny(path) == path
    expected = bundles.load(path)
    tokenizer = bundles.load_tokenizer(path / "tokenizer", expected)
    assert expected.params_hash and tokenizer.path == path / "tokenizer"
    put, calls = stores.put, []

    def failing(place, data):
        calls.append(place)
        if len(calls) == 2:
            raise KeyboardInterrupt
        put(place, data)

    for _ in range(2):
        calls.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(stores, "put", failing)
            save_tiny(path)
        with pytest.raises(InputError, match="cannot read gs://bucket/run/export/config.json"):
            bundles.load(path)
    save_tiny(path)
    assert bundles.load(str(path)).params_hash == expected.params_hash
    behind_our_back(store, "run/other/results.json", b"{}")
    with pytest.raises(InputError, match="other holds results.json, which writing would delete"):
        save_tiny(folder / "other")
    assert "run/other/results.json" in names(store)


@pytest.mark.parametrize("name", ["set.npz", "set"])
def test_samples_are_joined_as_on_a_disk(folder, store, tmp_path, monkeypatch, name):
    monkeypatch.setattr(sample_files, "RANGE_SIZE", 8)
    labels = np.arange(11, dtype=np.int32) % 3
    pixels = np.random.default_rng(0).integers(0, 255, (11, 2, 2, 1), np.uint8)
    for place in (folder / name, tmp_path / name):
        check_output(place)

        def draw(start, stop, place=place):
            if start and files.is_remote(place):
                assert (sample_files.folder_of(place) / "00000000.npz").exists()
                behind_our_back(store, "run/set/00_label0.png", b"of a join that broke off")
                check_output(place)
            return pixels[start:stop], np.zeros((stop - start, 4), np.int32)

        assert sample_files.write_samples(place, labels, {"seed": 1}, draw) == 0
        assert not sample_files.folder_of(place).exists()
    if name == "set":
        there = {x.name: x.read_bytes() for x in (folder / name).iterdir()}
        assert there == {x.name: x.read_bytes() for x in (tmp_path / name).iterdir()}
        with pytest.raises(InputError, match="set holds .*, which writing would delete"):
            check_output(folder / name)
        return
    with (
        np.load(io.BytesIO((folder / name).read_bytes())) as one,
        np.load(tmp_path / name) as other,
    ):
        assert set(one) == set(other)
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_a_page_finds_its_pictures_and_those_of_nobody_else(folder):
    named = [{"file": "pictures/all.png"}, {"file": "../../secret/a.png"}]
    text = json.dumps({"rows": [], "pictures": named})
    files.write_file(folder / "report" / "results.json", text.encode())
    for place in (folder / "report" / "pictures" / "all.png", folder.parent / "secret" / "a.png"):
        images.save_png(place, np.zeros((4, 4, 1), np.uint8))
    results = schema.read("gs://bucket/run")
    assert [picture.title for picture in page_pictures.collect(results)] == ["all"]
    assert run_folders.records(results.path.parent) == []


def test_the_digits_of_a_run_there_are_made_here(folder, store):
    assert digits.Digits.load("test", folder / "data").images.shape == (397, 8, 8, 1)
    assert names(store) == []


def test_a_folder_there_is_one_run_s_at_a_time(folder, store, monkeypatch):
    for name, seconds in (("BEAT", 0.1), ("LEFT", 1.0), ("SETTLE", 0.05), ("_LOOK", 0.05)):
        monkeypatch.setattr(run_lock, f"{name}_SECONDS", seconds)
    path = folder / run_lock.FILE_NAME
    with run_lock.hold(path, "--workdir=gs://bucket/run"):
        assert names(store) == ["run/.run.lock"]
        assert not stores.put_new(path, b"mine too")
        with pytest.raises(InputError, match="gs://bucket/run is in use by process"):
            with run_lock.hold(path, "--workdir=gs://bucket/run"):
                pass
        files.write_file(folder / "a", b"1")
    assert names(store) == ["run/a"]
    stores.put(path, b'{"pid": 7, "host": "far"}')
    notes = []
    with run_lock.hold(path, "--workdir=gs://bucket/run", notes.append):
        assert b"far" not in path.read_bytes() and len(notes) == 1
        stores.put(path, b"another's")
        time.sleep(0.5)
        with pytest.raises(InputError, match="was taken over by an unknown process"):
            files.write_file(folder / "a", b"2")
    assert object_store.objects(store) == {"run/.run.lock": b"another's", "run/a": b"1"}
