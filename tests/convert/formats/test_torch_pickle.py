"""What a checkpoint may ask for: plain data and tensors inside their storages."""

import sys
import types

import numpy as np
import pytest
import torch

from dimo_jax.common.errors import InputError
from dimo_jax.convert.formats import torch_files, torch_pickle
from tests.helpers.torch_pickles import (
    FLOATS,
    HEAD,
    LEGACY_HEAD,
    STOP,
    dumps,
    plain,
    read_both,
    refusals,
    storage,
    tensor,
    text,
    zip_file,
)


@pytest.mark.parametrize(
    "opcodes, complaint",
    [
        (tensor(offset=-1), "integer >= 0"),
        (tensor(offset=1), "past the end of storage 0"),
        (tensor(offset=1 << 62), "past the end of storage 0"),
        (tensor(offset=1 << 200), "past the end of storage 0"),
        (tensor(offset=True), "integer >= 0"),
        (tensor(offset=0.0), "integer >= 0"),
        (tensor(shape=(4, 4)), "past the end of storage 0"),
        (tensor(shape=(3, -4)), "integer >= 0"),
        (tensor(shape=(3,)), "1 axes and 2 strides"),
        (tensor(shape=(1 << 63, 1 << 63), strides=(0, 0)), "ValueError"),
        (tensor(shape=(0, 1 << 63)), "ValueError"),
        (tensor(shape=(1,) * 65, strides=(1,) * 65), "no short list"),
        (tensor(shape=12, strides=1), "no short list"),
        (tensor(strides=(-4, 1)), "integer >= 0"),
        (tensor(strides=(1 << 62, 1)), "past the end of storage 0"),
        (tensor(strides=("4", 1)), "integer >= 0"),
        (tensor(of=b"K\x01"), "a tensor has no storage"),
        (tensor(of=storage(numel=-12)), "integer >= 0"),
        (tensor(of=storage(numel=True)), "integer >= 0"),
        (tensor(of=storage(key=0)), "a storage is not named"),
        (tensor(of=storage(kind=b"K\x01")), "a storage is not named"),
        (tensor(of=storage(kind=b"ctorch\nfloat32\n")), "a storage is not named"),
        (tensor(of=storage(fields=b"(" + text("1") + b"K\x00K\x04t")), "a view of another"),
        (tensor(of=storage(fields=b"NN")), "a view of another"),
        (b"NQ", "a storage is not named"),
        (b"(" + text("module") + b"NNNtQ", "a storage is not named"),
    ],
)
def test_a_tensor_stays_inside_its_storage(tmp_path, opcodes, complaint):
    for message in refusals(tmp_path, HEAD + opcodes + STOP):
        assert complaint in message, message


@pytest.mark.parametrize("numel", [11, 13, 1 << 40, 1 << 100])
def test_a_storage_has_the_size_its_tensors_say(tmp_path, numel):
    opcodes = tensor(shape=(2,), strides=(1,), of=storage(numel=numel))
    for message in refusals(tmp_path, HEAD + opcodes + STOP):
        assert "storage 0" in message


def test_a_storage_that_is_not_there_is_reported(tmp_path):
    in_zip, in_legacy = refusals(tmp_path, HEAD + tensor(of=storage(key="../../1")) + STOP)
    assert "the member data/../../1 is missing" in in_zip
    assert "the storages listed are not those of the tensors" in in_legacy


def test_tensors_by_hand_are_read(tmp_path):
    grid = FLOATS.reshape(3, 4)
    for opcodes, expected in [
        (tensor(), grid),
        (tensor(shape=(4, 3), strides=(1, 4)), grid.T),
        (tensor(offset=5, shape=(2, 2), strides=(4, 2)), grid[1:, 1::2]),
        (tensor(offset=11, shape=(), strides=()), grid[2, 3]),
        (tensor(offset=2, shape=(3, 5), strides=(0, 0)), np.full((3, 5), grid[0, 2])),
        (tensor(offset=99, shape=(0, 5), strides=(9, 9)), grid[:0, :1].repeat(5, 1)),
        (b"ctorch._utils\n_rebuild_parameter\n(" + tensor() + b"\x88NtR", grid),
        (
            b"ctorch._utils\n_rebuild_tensor\n(" + storage() + plain(4) + plain((2,))
            + plain((1,)) + b"tR",
            FLOATS[4:6],
        ),
    ]:  # fmt: skip
        for result in read_both(tmp_path, HEAD + opcodes + STOP):
            np.testing.assert_array_equal(result, expected, strict=True)
            assert not result.flags.writeable or not result.size


def test_a_conjugated_tensor_is_refused(tmp_path):
    torch.save(torch.tensor([1j, 2.0]).conj(), tmp_path / "x.pth")
    with pytest.raises(InputError, match="conjugated or negated"):
        torch_files.read(tmp_path / "x.pth")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_is_read_in_every_protocol(tmp_path, protocol):
    shared = ["x", 2]
    value = {
        "none": None, "flags": (True, False), "ints": [0, -1, 255, 1 << 16, -(1 << 40), 1 << 99],
        "floats": (0.5, -1e300), "text": "λ\n\\ \U0001f600", "long": "y" * 300,
        "nested": {"a": [{1: ()}, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]}, "shared": [shared] * 2,
        ("tuple", 1): {}, 1.5: 0,
    }  # fmt: skip
    if protocol >= 4:
        value |= {"set": {1, 2}, "frozen": frozenset({3}), "bytes": b"\x00\xff"}
    for result in read_both(tmp_path, dumps(value, protocol)):
        assert result == value
        assert result["shared"][0] is result["shared"][1]


def test_containers_may_contain_themselves(tmp_path):
    loop: dict = {"model": {}}
    loop["model"]["self"] = loop
    for result in read_both(tmp_path, dumps(loop)):
        assert result["model"]["self"] is result
    path = zip_file(tmp_path / "x.pth", dumps(loop))
    with pytest.raises(InputError, match="other things than tensors in its state dict: self"):
        torch_files.state_dict(path)


def test_objects_that_carry_metadata_become_inert(tmp_path, monkeypatch):
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    exploding = type("ModelCheckpoint", (), {"__module__": module.__name__})
    exploding.__setstate__ = lambda self, state: pytest.fail("it was made")
    module.ModelCheckpoint = exploding
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    callback = exploding()
    callback.best = torch.ones(2)
    lists = type("Lists", (list,), {"__module__": module.__name__})
    module.Lists = lists
    content = {
        "epoch": 3,
        "callbacks": {exploding: {"best_model_score": torch.tensor(0.5)}, "object": callback},
        "items": lists([1, 2, 3]),
        "numbers": (np.float64(0.1), np.arange(3), {1, 2}),
        "state_dict": {"w": torch.ones(2)},
    }
    for legacy in (False, True):
        path = tmp_path / "x.ckpt"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        monkeypatch.setitem(sys.modules, module.__name__, None)
        found = torch_files.read(path)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        key, name = found["callbacks"]
        assert isinstance(key, torch_pickle.Inert) and name == "object"
        assert repr(key) == f"<{module.__name__}.ModelCheckpoint, not loaded>"
        assert found["callbacks"][key]["best_model_score"] == 0.5
        assert found["callbacks"]["object"].name.endswith("ModelCheckpoint")
        assert isinstance(found["items"], torch_pickle.Inert)
        assert all(isinstance(x, torch_pickle.Inert) for x in found["numbers"])
        np.testing.assert_array_equal(torch_files.state_dict(path)["w"], np.ones(2, "f"))


@pytest.mark.parametrize("legacy", [False, True])
def test_changed_bytes_never_raise_anything_else(tmp_path, legacy):
    path = tmp_path / "x.pth"
    content = {"state_dict": {"w": torch.ones(3, 4), "b": torch.ones(2).bfloat16()}, "step": 3}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    data, random = path.read_bytes(), np.random.default_rng(0)
    limit, refused = (len(data) if legacy else data.index(b"data/0")), 0
    for _ in range(120):
        changed = bytearray(data)
        for _ in range(random.integers(1, 4)):
            changed[random.integers(limit)] = random.integers(256)
        path.write_bytes(changed)
        try:
            torch_files.read(path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 20


def test_the_head_of_the_legacy_container_is_pytorchs(tmp_path):
    torch.save(1, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    head = (tmp_path / "x.pth").read_bytes()
    assert head.startswith(LEGACY_HEAD[:60])
