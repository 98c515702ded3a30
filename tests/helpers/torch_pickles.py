"""Pickles by hand, in both containers of torch.save."""

import pickle
import struct
import zipfile

import numpy as np

from dimo_jax.common.errors import InputError
from dimo_jax.convert.formats import torch_files

FLOATS = np.arange(12, dtype="<f4")
HEAD, STOP = b"\x80\x02", b"."
LEGACY_HEAD = b"".join(
    pickle.dumps(x, 2)
    for x in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
)


def zip_file(path, pickled, storages=None):
    """The zip container around a pickle; storages are {key: bytes}."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path


def legacy_file(path, pickled, storages=None):
    """The legacy container around a pickle; storages are {key: float32 bytes}."""
    storages = storages or {}
    data = LEGACY_HEAD + pickled + pickle.dumps(list(storages), 2)
    for content in storages.values():
        data += struct.pack("<q", len(content) // 4) + content
    path.write_bytes(data)
    return path


def text(string):
    data = string.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def plain(value):
    """The opcodes of a plain value, without head and stop."""
    return pickle.dumps(value, 2)[2:-1]


def storage(key="0", numel=12, kind=b"ctorch\nFloatStorage\n", fields=b""):
    return b"(" + text("storage") + kind + plain(key) + text("cpu") + plain(numel) + fields + b"tQ"


def tensor(offset=0, shape=(3, 4), strides=(4, 1), of=None):
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + (storage() if of is None else of)
        + plain(offset)
        + plain(shape)
        + plain(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def dumps(value, protocol=2):
    return pickle.dumps(value, protocol)


def read_both(tmp_path, pickled):
    """What each container gives: an object, or its InputError."""
    results = []
    storages = {"0": FLOATS.tobytes()} if b"storage" in pickled else {}
    for write in (zip_file, legacy_file):
        path = write(tmp_path / f"{write.__name__}.pth", pickled, storages)
        try:
            results.append(torch_files.read(path))
        except InputError as error:
            results.append(error)
    return results


def refusals(tmp_path, pickled):
    results = read_both(tmp_path, pickled)
    assert all(isinstance(x, InputError) for x in results), results
    return [str(x) for x in results]
