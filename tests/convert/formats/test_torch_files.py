"""Checkpoint files of both containers, as PyTorch itself writes them."""

import gzip
import mmap
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from dimo_jax.common.errors import InputError
from dimo_jax.convert.formats import torch_files
from tests.helpers.torch_pickles import dumps, legacy_file, tensor, zip_file

CONTAINERS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def save(path, content, legacy=False):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def to_numpy(x):
    """PyTorch's tensor as an array, through its own conversion where it has one."""
    same_size = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.int8}
    if x.dtype not in same_size:
        return x.detach().numpy()
    name = str(x.dtype).removeprefix("torch.")
    return x.view(same_size[x.dtype]).numpy().view(getattr(ml_dtypes, name))


def assert_same(found, tensors):
    assert list(found) == list(tensors)
    for key, expected in tensors.items():
        expected = to_numpy(expected)
        np.testing.assert_array_equal(found[key], expected, strict=True, err_msg=key)
        if expected.size:
            assert found[key].strides == expected.strides, key


def mapped(array):
    """Whether an array is a view of a mapped file."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else array.base
    return array is not None


def every_kind():
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    return OrderedDict(
        whole=base,
        transposed=base.t(),
        slice=base[1:4, 2::3],
        expanded=base[:1].expand(5, 8),
        axes=torch.randn(2, 3, 4, 5).permute(3, 1, 0, 2),
        scalar=torch.tensor(2.5),
        one_of=base[3, 3],
        empty=torch.zeros(0, 3),
        empty_slice=base[:, :0],
        parameter=torch.nn.Parameter(torch.randn(3)),
        **{
            str(dtype): (torch.randn(2, 5) * 50).abs().to(dtype)
            for dtype in (
                *(torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32),
                *(torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64),
                *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn),
            )
        },
    )


@CONTAINERS
def test_every_kind_of_tensor_is_read_as_pytorch_saved_it(tmp_path, legacy):
    tensors = every_kind()
    path = save(
        tmp_path / "x.pth", {"model": tensors, "iter": 7, "size": torch.Size((2, 3))}, legacy
    )
    found = torch_files.read(path)
    assert_same(found["model"], tensors)
    assert found["iter"] == 7 and found["size"] == (2, 3)
    assert all(mapped(x) and not x.flags.writeable for x in found["model"].values() if x.size)


@CONTAINERS
def test_tied_weights_stay_tied(tmp_path, legacy):
    weight = torch.randn(4, 4)
    found = torch_files.read(save(tmp_path / "x.bin", {"a": weight, "b": weight.t()}, legacy))
    assert np.shares_memory(found["a"], found["b"])
    np.testing.assert_array_equal(found["a"], found["b"].T)


@CONTAINERS
def test_a_module_and_its_optimizer_are_read_lazily(tmp_path, legacy):
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    content = {
        "iter": 1,
        "model_state_dict": module.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
    }
    found = torch_files.read(save(tmp_path / "x.pth", content, legacy))
    assert_same(found["model_state_dict"], module.state_dict())
    moments = found["optimizer_state_dict"]["state"]
    for index, expected in optimizer.state_dict()["state"].items():
        assert_same(moments[index], expected)
        assert all(mapped(x) for x in moments[index].values())
    assert found["optimizer_state_dict"]["param_groups"][0]["betas"] == (0.9, 0.999)


def test_a_tensor_with_attributes_is_a_tensor(tmp_path):
    buffer, parameter = torch.ones(2), torch.nn.Parameter(torch.ones(3))
    buffer.note = parameter.note = "kept out"
    found = torch_files.read(save(tmp_path / "x.pth", {"b": buffer, "p": parameter}))
    assert_same(found, {"b": buffer, "p": parameter})


@CONTAINERS
def test_a_file_cut_off_anywhere_is_whole_or_refused(tmp_path, legacy):
    tensors = OrderedDict(a=torch.randn(3, 5), b=torch.randn(7).bfloat16(), a2=torch.tensor(4))
    path = save(tmp_path / "x.pth", tensors, legacy)
    data = path.read_bytes()
    step = 4 if legacy else 9
    for length in [*range(0, len(data), step), *range(len(data) - 30, len(data))]:
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"x.pth (is|ends|begins) .*(download|expected)"):
            torch_files.read(path)
    path.write_bytes(data)
    assert_same(torch_files.read(path), tensors)


def test_a_member_that_is_missing_or_short_is_reported(tmp_path):
    path = tmp_path / "x.pth"
    pickled = b"\x80\x02" + tensor() + b"."
    zip_file(path, pickled)
    with pytest.raises(InputError, match="the member data/0 is missing"):
        torch_files.read(path)
    zip_file(path, pickled, {"0": b"1234"})
    with pytest.raises(InputError, match="storage 0 has 4 bytes, expected 48"):
        torch_files.read(path)


def test_a_local_header_that_points_elsewhere_is_refused(tmp_path):
    path = save(tmp_path / "x.pth", {"a": torch.ones(3)})
    data = path.read_bytes()
    place = data.index(b"x/data/0") - 30
    for at, change in ((0, b"PKXX"), (28, b"\xff\xff")):
        broken = bytearray(data)
        broken[place + at : place + at + len(change)] = change
        path.write_bytes(broken)
        with pytest.raises(InputError, match="the member x/data/0 (is damaged|reaches past)"):
            torch_files.read(path)


def repacked(path, compression):
    with zipfile.ZipFile(path) as archive:
        members = {x: archive.read(x) for x in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_compressed_file_is_read_into_memory(tmp_path):
    tensors = every_kind()
    path = repacked(save(tmp_path / "x.pth", tensors), zipfile.ZIP_DEFLATED)
    assert_same(torch_files.read(path), tensors)


def test_a_file_that_unpacks_to_far_more_than_weights_do_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "MAX_UNPACKED_BYTES", 1000)
    path = repacked(save(tmp_path / "x.pth", {"a": torch.zeros(1 << 20)}), zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"unpacks to \d+, which weights do not"):
        torch_files.read(path)


def test_a_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "x.pth", {"a": torch.arange(5)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(torch_files.read(path), {"a": torch.arange(5)})


def test_another_byte_order_is_refused(tmp_path):
    path = zip_file(tmp_path / "x.pth", dumps({}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(InputError, match="big-endian machine"):
        torch_files.read(path)
    legacy_file(path, dumps({}))
    path.write_bytes(
        path.read_bytes().replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89")
    )
    with pytest.raises(InputError, match="big-endian machine"):
        torch_files.read(path)


def make_tar(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "sys_info")


def make_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")


def make_script(path):
    zip_file(path, dumps({}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", dumps(()))


@pytest.mark.parametrize(
    "write, complaint",
    [
        (lambda p: None, "there is no file .*x.pth; give the path"),
        (lambda p: p.mkdir(), "there is no file .*x.pth; give the path"),
        (lambda p: p.symlink_to("/dev/null"), "there is no file .*x.pth; give the path"),
        (lambda p: p.write_bytes(b""), "is empty; download or copy it again"),
        (lambda p: p.write_text("<!DOCTYPE html><html>"), "a web page; download the file itself"),
        (lambda p: p.write_text("\n <html>"), "a web page"),
        (
            lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
            "a git-lfs pointer; run `git lfs pull`",
        ),
        (lambda p: p.write_bytes(gzip.compress(b"x")), "compressed with gzip; unpack it"),
        (lambda p: p.write_bytes(b"\x93NUMPY\x01\x00"), "a NumPy file"),
        (lambda p: p.write_bytes(b"\x1b[31m\n"), r"begins with b'\\x1b\[31m\\n'; expected a file"),
        (lambda p: safetensors.torch.save_file({"a": torch.ones(1)}, p), "a safetensors file"),
        (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "a pickle of something else"),
        (lambda p: p.write_bytes(pickle.dumps(1.0, 0)), "begins with b'F1"),
        (make_tar, "the tar container of PyTorch 0.1, which is not read; load it with PyTorch"),
        (make_zip, "a zip archive with 0 members data.pkl, expected one"),
        (make_script, "a TorchScript program; save its state_dict"),
    ],
)
def test_anything_else_gets_one_sentence(tmp_path, write, complaint):
    path = tmp_path / "x.pth"
    write(path)
    with pytest.raises(InputError, match=complaint) as info:
        torch_files.read(path)
    assert str(path) in str(info.value) and str(info.value).isprintable()


def test_a_file_of_two_checkpoints_is_refused(tmp_path):
    path = zip_file(tmp_path / "x.pth", dumps({}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("second/data.pkl", dumps({}))
    with pytest.raises(InputError, match="2 members data.pkl, expected one"):
        torch_files.read(path)


# ---- state_dict


@pytest.mark.parametrize("name", [None, *torch_files.STATE_DICT_NAMES])
def test_the_state_dict_is_found(tmp_path, name):
    tensors = OrderedDict(a=torch.randn(2), b=torch.randn(3))
    content = tensors if name is None else {"epoch": 1, name: tensors, "optimizer": {}}
    assert_same(torch_files.state_dict(save(tmp_path / "x.pth", content)), tensors)


def test_the_state_dict_is_taken_from_the_place_given(tmp_path):
    ours, theirs = {"a": torch.ones(2)}, {"a": torch.zeros(2)}
    path = save(tmp_path / "x.pth", {"model": theirs, "model_ema": ours})
    assert_same(torch_files.state_dict(path, at="model_ema"), ours)
    with pytest.raises(InputError, match="holds model, model_ema, but nothing under --key=ema"):
        torch_files.state_dict(path, at="ema")


def test_prefixes_of_wrappers_are_stripped_from_the_front(tmp_path):
    x = torch.ones(1)
    state = {"module._orig_mod.module.a": x, "_orig_mod.b": x, "c.module.d": x, "modules.e": x}
    found = torch_files.state_dict(save(tmp_path / "x.pth", state))
    assert list(found) == ["a", "b", "c.module.d", "modules.e"]
    path = save(tmp_path / "x.pth", {"module.a": x, "a": x})
    with pytest.raises(InputError, match="holds a both with and without the prefix"):
        torch_files.state_dict(path)


@pytest.mark.parametrize(
    "content, complaint",
    [
        (torch.ones(2), "holds a ndarray, expected a dict of tensors"),
        ([1], "holds a list, expected a dict of tensors"),
        ({}, "holds nothing, expected a dict of tensors under model_state_dict or state_dict or"),
        ({"a": 1, "b": {}}, "holds a, b, expected a dict of tensors"),
        ({f"k{i}": i for i in range(20)}, "k7 and 12 more, expected"),
        ({"model": 3}, "holds model, expected a dict of tensors"),
        ({"model": {"a": torch.ones(1), "x": None}}, "other things than tensors .*: x; save"),
        ({"model": {1: torch.ones(1)}}, "other things than tensors .*: 1; save"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path, content, complaint):
    with pytest.raises(InputError, match=complaint):
        torch_files.state_dict(save(tmp_path / "x.pth", content))


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin"])
def test_safetensors_are_read_under_any_name(tmp_path, name):
    tensors = {
        "a": torch.randn(2, 3), "b": torch.randn(4).bfloat16(), "c": torch.tensor(3),
        "d": torch.zeros(0, 2), "e": torch.ones(2, dtype=torch.float16), "f": torch.ones(1).bool(),
    }  # fmt: skip
    safetensors.torch.save_file({f"module.{k}": x for k, x in tensors.items()}, tmp_path / name)
    found = torch_files.state_dict(tmp_path / name)
    assert_same({key: found[key] for key in tensors}, tensors)


def test_broken_safetensors_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="there is no file"):
        torch_files.state_dict(path)
    safetensors.torch.save_file({"a": torch.ones(5)}, path)
    data = path.read_bytes()
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match="damaged or no safetensors|is empty"):
            torch_files.state_dict(path)
    for data, words in (
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=words):
            torch_files.state_dict(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_safetensors_are_read_as_the_pth_is(tmp_path, dtype):
    tensors = {"a": torch.linspace(-3, 3, 6).to(dtype).reshape(2, 3), "b": torch.ones(())}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    found = torch_files.state_dict(tmp_path / "x.safetensors")
    expected = torch_files.state_dict(save(tmp_path / "x.pth", tensors))
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype and found[key].shape == array.shape
        assert found[key].tobytes() == array.tobytes()
        assert mapped(found[key])


def test_weights_are_found_under_ema_or_by_key(tmp_path):
    ema, model = ({"a": torch.full((2,), float(i))} for i in range(2))
    path = save(tmp_path / "x.pth", {"ema": ema, "step": 3})
    assert torch_files.state_dict(path)["a"][0] == 0
    path = save(tmp_path / "x.pth", {"ema": ema, "model": model})
    with pytest.raises(InputError, match="weights under each of model, ema, .*choose with --key"):
        torch_files.state_dict(path)
    assert torch_files.state_dict(path, "model")["a"][0] == 1
    assert torch_files.state_dict(path, "ema")["a"][0] == 0
    # Hyperparameters of such a name are no weights.
    path = save(tmp_path / "x.pth", {"params": {"width": 3}, "ema": ema, "model": {}})
    assert torch_files.state_dict(path)["a"][0] == 0
    path = save(tmp_path / "x.pth", {"ema.a": ema["a"], "model.a": model["a"]})
    assert torch_files.state_dict(path, "model")["a"][0] == 1
    with pytest.raises(InputError, match="holds ema.a, model.a, but nothing under --key=net"):
        torch_files.state_dict(path, "net")


@CONTAINERS
def test_a_few_bytes_that_stand_for_gigabytes_are_refused(tmp_path, legacy):
    small = torch.zeros(1).expand(1 << 10, 1 << 10)
    assert torch_files.state_dict(save(tmp_path / "x.pth", {"a": small}, legacy))["a"].shape
    large = torch.zeros(1).expand(1 << 17, 1 << 16)  # 32 GiB
    with pytest.raises(InputError, match="repeats storage"):
        torch_files.read(save(tmp_path / "x.pth", {"a": large}, legacy))
    rows = torch.zeros(1 << 12).as_strided((1 << 11, 1 << 11), (1, 1))
    with pytest.raises(InputError, match="repeats storage"):
        torch_files.read(save(tmp_path / "x.pth", {"a": rows}, legacy))


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux tells")
def test_reading_a_big_file_touches_little_of_it(tmp_path):
    path = save(tmp_path / "x.pth", {"model": {"a": torch.ones(4)}, "moments": torch.ones(1 << 24)})

    def resident_bytes():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE

    before = resident_bytes()
    found = torch_files.read(path)
    assert found["moments"].nbytes == 1 << 26
    assert resident_bytes() - before < 1 << 24
