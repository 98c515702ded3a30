import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dimo_jax.common.errors import InputError
from dimo_jax.data import digits
from tests.helpers import ROOT

VERSION_DIR = Path("digits", "1.0.0")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data set written once; tests that spoil it take a copy."""
    directory = tmp_path_factory.mktemp("data")
    digits.Digits.load("train", directory)
    return directory


def run_python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


def assert_same_as(data_dir, other_dir):
    for split in ("train", "test"):
        found = digits.Digits.load(split, other_dir)
        wanted = digits.Digits.load(split, data_dir)
        np.testing.assert_array_equal(found.images, wanted.images)
        np.testing.assert_array_equal(found.labels, wanted.labels)


def snapshot(directory):
    return {p: p.stat().st_mtime_ns for p in sorted(Path(directory).rglob("*"))}


def places(images):
    """Where scikit-learn's data set has these images, all of which are distinct."""
    source = load_digits().images.astype(np.float64)
    index = {image.tobytes(): place for place, image in enumerate(source)}
    assert len(index) == 1797
    return [index[image.tobytes()] for image in (images[..., 0].astype(np.float64) * 16)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_in_memory_they_are_the_same_bits_and_nothing_is_written(data_dir, split):
    before = snapshot(data_dir)
    found, wanted = digits.Digits.in_memory(split), digits.Digits.load(split, data_dir)
    assert found.texts == wanted.texts == ()
    for one, other in zip(found[:2], wanted[:2], strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        np.testing.assert_array_equal(one, other)
    assert found.images.shape[1:] == digits.Digits.IMAGE_SHAPE and snapshot(data_dir) == before


def test_both_splits_together_are_the_digits_of_scikit_learn(data_dir):
    source = load_digits()
    found = []
    for split, size in (("train", 1400), ("test", 397)):
        images, labels, _ = digits.Digits.load(split, data_dir)
        assert images.shape == (size, 8, 8, 1) and images.dtype == np.float32
        assert labels.shape == (size,) and labels.dtype == np.int32
        assert images.min() == 0.0 and images.max() == 1.0
        where = places(images)
        assert where == sorted(where)
        np.testing.assert_array_equal(labels, source.target[where])
        found += where
    assert sorted(found) == list(range(1797))


def test_the_split_is_stratified(data_dir):
    wanted = np.bincount(load_digits().target) * 397 / 1797
    counts = np.bincount(digits.Digits.load("test", data_dir).labels)
    assert np.abs(counts - wanted).max() < 1


def test_the_split_never_changes(data_dir):
    # Results are compared across versions only as long as these stand: written down once.
    where = places(digits.Digits.load("test", data_dir).images)
    assert where[:10] == [2, 3, 11, 13, 15, 20, 21, 32, 46, 48]
    assert sum(where) == 370450


def test_a_second_call_writes_nothing(data_dir, monkeypatch):
    before = snapshot(data_dir)
    assert any(path.name.startswith("digits-train.array_record") for path in before)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # nor does it need scikit-learn
    digits.Digits.load("train", data_dir)
    digits.Digits.load("test", data_dir)
    assert snapshot(data_dir) == before


def test_generating_is_silent_and_offline(tmp_path, monkeypatch, capfd):
    calls = []

    def refuse(*arguments, **options):
        calls.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    digits.Digits.load("test", tmp_path)
    assert calls == []
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


WITHOUT_TENSORFLOW = """
import importlib.machinery, importlib.util
find = importlib.machinery.PathFinder.find_spec
def find_spec(cls, name, path=None, target=None):
    return None if name.split(".")[0] == "tensorflow" else find(name, path, target)
importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
assert importlib.util.find_spec("tensorflow") is None
"""
LOAD = """
import sys
from dimo_jax.data import digits
assert len(digits.Digits.load("train", sys.argv[1]).images) == 1400  # generated
assert len(digits.Digits.load("test", sys.argv[1]).images) == 397  # read
"""


def test_works_where_tensorflow_is_not_installed(data_dir, tmp_path):
    done = run_python(
        "import warnings; warnings.simplefilter('error')" + WITHOUT_TENSORFLOW + LOAD, tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert_same_as(data_dir, tmp_path)


@pytest.mark.slow
def test_works_where_tensorflow_is_loaded(data_dir, tmp_path):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    done = run_python("import tensorflow" + LOAD, tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_as(data_dir, tmp_path)


def test_a_process_killed_while_it_writes_leaves_nothing_that_is_read(data_dir, tmp_path):
    # The training split's files are complete by the time the test split is asked for.
    code = """
import os, signal, sys
from dimo_jax.data import digits
generate = digits.Digits._generate_examples
def killed(self, split):
    for count, example in enumerate(generate(self, split)):
        if split == "test" and count == 100:
            os.kill(os.getpid(), signal.SIGKILL)
        yield example
digits.Digits._generate_examples = killed
digits.Digits.load("train", sys.argv[1])
"""
    done = run_python(code, tmp_path)
    assert done.returncode == -signal.SIGKILL
    leftovers = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert any("train" in name for name in leftovers)
    assert not (tmp_path / VERSION_DIR).exists()
    assert_same_as(data_dir, tmp_path)
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == [".lock", "1.0.0"]


def test_what_another_process_is_writing_is_waited_for_and_kept(data_dir, tmp_path):
    folder = tmp_path / "digits"
    mine = folder / "incomplete.ABC123_1.0.0"
    mine.mkdir(parents=True)
    (folder / "incomplete.ABC123_2.0.0").mkdir()  # of another version: not ours
    with open(folder / ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code = (
            "import sys; from dimo_jax.data import digits; digits.Digits.load('test', sys.argv[1])"
        )
        reader = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(10)
        assert mine.exists() and not (tmp_path / VERSION_DIR).exists()
        shutil.copytree(data_dir / VERSION_DIR, tmp_path / VERSION_DIR)
    assert reader.wait(120) == 0
    left = sorted(path.name for path in folder.iterdir())
    assert left == [".lock", "1.0.0", "incomplete.ABC123_2.0.0"]


def remove_info(files):
    (files / "dataset_info.json").unlink()


def cut_info(files):
    os.truncate(files / "dataset_info.json", 100)


def cut_records(files):
    os.truncate(next(files.glob("digits-test.array_record*")), 70_000)


def remove_records(files):
    next(files.glob("digits-test.array_record*")).unlink()


def claim_fewer(files):
    info = files / "dataset_info.json"
    assert '"397"' in info.read_text()
    info.write_text(info.read_text().replace('"397"', '"396"'))


def test_other_files_in_their_place_stay(tmp_path):
    path = tmp_path / VERSION_DIR / "thesis.txt"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(InputError, match="holds thesis.txt and is no data set of this program"):
        digits.Digits.load("test", tmp_path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    "damage", [remove_info, cut_info, cut_records, remove_records, claim_fewer]
)
def test_damaged_files_are_generated_again_with_a_warning(damage, data_dir, tmp_path, caplog):
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / VERSION_DIR)
    digits.Digits.load("test", tmp_path)
    assert "generating it again" in caplog.text
    caplog.clear()
    assert_same_as(data_dir, tmp_path)
    assert caplog.text == ""


def test_another_process_may_finish_first(data_dir, tmp_path, monkeypatch):
    generate = digits.Digits._generate_examples

    def overtaken(self, split):
        yield from generate(self, split)
        if split == "test":
            shutil.copytree(data_dir / VERSION_DIR, tmp_path / VERSION_DIR)

    monkeypatch.setattr(digits.Digits, "_generate_examples", overtaken)
    digits.Digits.load("train", tmp_path)
    assert (tmp_path / VERSION_DIR).is_dir()
    assert_same_as(data_dir, tmp_path)


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    # A file in the way, since root may write into any directory.
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to data_dir .*file/data"):
        digits.Digits.load("train", tmp_path / "file" / "data")


def test_a_missing_scikit_learn_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"pip install -e \"\.\[digits\]\""):
        digits.Digits.load("train", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(InputError, match="'validation', expected one of"):
        digits.Digits.load("validation", tmp_path)
