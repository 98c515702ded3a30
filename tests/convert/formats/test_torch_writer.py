"""State dicts written without PyTorch, read back by PyTorch and by our reader."""

import errno
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from dimo_jax.common import temporaries
from dimo_jax.common.errors import InputError
from dimo_jax.convert.formats import torch_files, torch_writer
from dimo_jax.convert.formats.torch_pickle import STORAGES


def bits(x):
    return np.ascontiguousarray(x).tobytes()


def as_numpy(x):
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def example():
    random = np.random.default_rng(0)
    grid = random.standard_normal((3, 4)).astype(np.float32)
    grid[0, 0], grid[0, 1] = -0.0, np.nan
    return {
        "layer.0.weight": grid,
        "transposed": grid.T,
        "strided": grid[::2, 1:],
        "repeated": np.broadcast_to(np.float32(2), (3, 5)),
        "scalar": np.asarray(5),
        "empty": np.zeros((0, 3), np.float32),
        "λ": np.arange(300),
        **{
            name: (np.abs(random.standard_normal((2, 3))) * 50).astype(dtype)
            for name, dtype in STORAGES.items()
        },
    }


@pytest.mark.parametrize("large_bytes", [torch_writer.LARGE_BYTES, 0])
def test_pytorch_and_our_reader_get_every_bit_back(tmp_path, monkeypatch, large_bytes):
    monkeypatch.setattr(torch_writer, "LARGE_BYTES", large_bytes)
    state, path = example(), tmp_path / "new" / "pytorch_model.bin"
    assert torch_writer.write_state_dict(path, state) == path
    for mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mapped)
        assert list(loaded) == list(state)
        for key, expected in state.items():
            found = as_numpy(loaded[key])
            assert found.dtype == expected.dtype and found.shape == expected.shape, key
            assert bits(found) == bits(expected), key
            assert loaded[key].is_contiguous()
            if mapped:
                assert not expected.size or loaded[key].data_ptr() % 64 == 0
    found = torch_files.state_dict(path)
    assert list(found) == list(state)
    for key, expected in state.items():
        assert found[key].dtype == expected.dtype and found[key].shape == expected.shape, key
        assert bits(found[key]) == bits(expected), key
        assert found[key].flags.aligned and found[key].flags.c_contiguous
    assert os.listdir(path.parent) == [path.name]


def test_the_container_is_laid_out_as_pytorchs(tmp_path):
    state = {"a": np.arange(20, dtype=np.float32), "b": np.arange(3)}
    ours = torch_writer.write_state_dict(tmp_path / "archive.pth", state)
    theirs = tmp_path / "theirs" / "archive.pth"
    theirs.parent.mkdir()
    torch.save({key: torch.from_numpy(x) for key, x in state.items()}, theirs)
    with zipfile.ZipFile(ours) as a, zipfile.ZipFile(theirs) as b:
        assert a.testzip() is None
        assert a.namelist() == [x for x in b.namelist() if not x.endswith("serialization_id")]
        for name in a.namelist():
            if not name.endswith("data.pkl"):
                assert a.read(name) == b.read(name), name
        sizes = [info.compress_type for info in a.infolist()]
        assert sizes == [zipfile.ZIP_STORED] * len(sizes)


def test_one_array_under_two_keys_is_stored_once(tmp_path):
    weight = np.ones((4, 4), np.float32)
    state = {"head": weight, "embedding": weight, "other": weight.copy()}
    path = torch_writer.write_state_dict(tmp_path / "x.pth", state)
    loaded = torch.load(path, weights_only=True)
    assert loaded["head"].data_ptr() == loaded["embedding"].data_ptr()
    assert loaded["head"].data_ptr() != loaded["other"].data_ptr()
    found = torch_files.read(path)
    assert np.shares_memory(found["head"], found["embedding"])


def test_the_same_values_give_the_same_bytes(tmp_path):
    first = torch_writer.write_state_dict(tmp_path / "a.pth", example())
    second = torch_writer.write_state_dict(tmp_path / "b.bin", example())
    assert first.read_bytes() == second.read_bytes()


def test_an_empty_state_dict_is_written(tmp_path):
    path = torch_writer.write_state_dict(tmp_path / "x.pth", {})
    assert torch.load(path, weights_only=True) == {}
    assert torch_files.read(path) == {}


@pytest.mark.parametrize("number", [0, 255, (1 << 31) - 1, 1 << 31, 1 << 40])
def test_sizes_of_any_length_are_written(number):
    # An array of more than 2^31 elements would take gigabytes: only its number is written here.
    assert pickle.loads(b"\x80\x02" + torch_writer.pickled_integer(number) + b".") == number


@pytest.mark.parametrize("dtype", ["uint16", "U3", ">f4", ml_dtypes.float8_e4m3fn])
def test_a_dtype_without_a_storage_is_an_error(tmp_path, dtype):
    with pytest.raises(ValueError, match="PyTorch has no storage for x is"):
        torch_writer.write_state_dict(tmp_path / "x.pth", {"x": np.zeros(2, dtype)})
    assert os.listdir(tmp_path) == []


class FullDisk:
    """A file whose disk is full after some bytes."""

    def __init__(self, file, free_bytes):
        self.file, self.free_bytes = file, free_bytes

    def write(self, data):
        self.free_bytes -= len(data)
        if self.free_bytes < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *arguments):
        self.file.close()


@pytest.mark.parametrize("free_bytes", [0, 100, 3000, 20000, 40900])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, free_bytes):
    path = tmp_path / "x.pth"
    path.write_text("before")
    state = {f"k{i}": np.ones(1000, np.float32) for i in range(10)}
    opened = open
    monkeypatch.setattr(
        temporaries, "open", lambda *a: FullDisk(opened(*a), free_bytes), raising=False
    )
    with pytest.raises(OSError, match="No space left"):
        torch_writer.write_state_dict(path, state)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["x.pth"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_end_leaves_what_was_there(tmp_path, monkeypatch, call):
    path = tmp_path / "x.pth"
    path.write_text("before")

    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(InputError, match=r"cannot write .*x.pth: Input/output error"):
        torch_writer.write_state_dict(path, {"a": np.ones(3)})
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["x.pth"]


def test_a_path_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*file/x.pth"):
        torch_writer.write_state_dict(tmp_path / "file" / "x.pth", {})
    with pytest.raises(InputError, match="cannot write"):
        torch_writer.write_state_dict(tmp_path, {})


def test_a_file_may_be_rewritten_from_itself(tmp_path):
    path = torch_writer.write_state_dict(tmp_path / "x.pth", example())
    before = path.read_bytes()
    torch_writer.write_state_dict(path, torch_files.state_dict(path))
    assert path.read_bytes() == before
