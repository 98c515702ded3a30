"""State dicts as files that torch.load reads, written without PyTorch."""

import math
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dimo_jax.common import files
from dimo_jax.convert.formats.torch_pickle import STORAGES

# torch.save aligns so, for readers that map the file.
ALIGNMENT_BYTES = 64
_STORAGE_NAMES = {dtype: name for name, dtype in STORAGES.items()}
# Every member is named below this folder, whatever the file is called: same values, same bytes.
_ROOT = "archive"
_CHUNK_BYTES = 1 << 24
# From here a member has 8-byte sizes; below 2 GiB / 1.05, where zipfile would choose them itself.
LARGE_BYTES = 1 << 30


def write_state_dict(path: str | os.PathLike, state: Mapping[str, np.ndarray]) -> Path:
    """Write the zip container of torch.save; torch.load(path, weights_only=True) reads it.

    At most one tensor is copied in memory, and only if it is not contiguous. The file appears
    whole or not at all.

    Args:
        path: the file, usually .pth or .bin; one that exists is replaced. Its folder is created.
        state: {key: array}; any dtype that has a class in torch_pickle.STORAGES. Keys with the
            same array object share its storage, as tied weights do in PyTorch.

    Returns:
        The path.

    Raises:
        ValueError: PyTorch has no storage of an array's dtype.
        InputError: the path cannot be written.
        OSError: the disk is full.

    Source: torch/serialization.py of PyTorch 2.13, `_save`; its layout, not its code.
    """
    path = Path(path)
    wrong = [f"{key} is {x.dtype}" for key, x in state.items() if x.dtype not in _STORAGE_NAMES]
    if wrong:
        raise ValueError(f"PyTorch has no storage for {'; '.join(wrong)}")
    # By identity; `arrays` keeps every one alive, so that no two share an id.
    arrays = dict(state)
    numbers: dict[int, int] = {}
    for array in arrays.values():
        numbers.setdefault(id(array), len(numbers))
    unique = {numbers[id(array)]: array for array in arrays.values()}
    with files.writing(path) as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, "data.pkl", np.frombuffer(_pickled(arrays, numbers), np.uint8))
        for name, text in {
            ".format_version": b"1",
            ".storage_alignment": b"%d" % ALIGNMENT_BYTES,
            "byteorder": b"little",
        }.items():
            _add(archive, name, np.frombuffer(text, np.uint8))
        for number, array in unique.items():
            _add(archive, f"data/{number}", array)
        _add(archive, "version", np.frombuffer(b"3\n", np.uint8))
    return path


def _add(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    """Append an array's bytes in C order as a member that starts at a multiple of 64."""
    info = zipfile.ZipInfo(f"{_ROOT}/{name}")
    info.file_size = array.nbytes
    large = array.nbytes >= LARGE_BYTES
    # Behind a member's fixed 30 bytes, its name and its sizes if large, a field of any content with
    # 4 bytes of head, "FB" as torch.save calls it.
    header_bytes = 30 + len(info.filename) + (20 if large else 0) + 4
    padding = -(archive.start_dir + header_bytes) % ALIGNMENT_BYTES
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    # Bytes of any dtype, ml_dtypes' and zero axes included, which have no buffer of their own.
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    with archive.open(info, "w", force_zip64=large) as member:
        for start in range(0, len(content), _CHUNK_BYTES):
            member.write(content[start : start + _CHUNK_BYTES])


def _pickled(arrays: Mapping[str, np.ndarray], numbers: Mapping[int, int]) -> bytes:
    """Return the pickle (protocol 2) of an OrderedDict of tensors, opcode by opcode.

    A tensor is _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks), the
    storage a persistent id ("storage", class, key, device, elements).
    """
    parts = [b"\x80\x02", b"ccollections\nOrderedDict\n", b")R", b"("]
    for key, array in arrays.items():
        shape = array.shape
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        storage = _STORAGE_NAMES[array.dtype]
        parts += [
            _text(key),
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"((" + _text("storage") + f"ctorch\n{storage}\n".encode(),
            _text(str(numbers[id(array)])) + _text("cpu") + pickled_integer(array.size) + b"tQ",
            pickled_integer(0),
            b"(" + b"".join(map(pickled_integer, shape)) + b"t",
            b"(" + b"".join(map(pickled_integer, strides)) + b"t",
            b"\x89" + b"ccollections\nOrderedDict\n" + b")R" + b"tR",
        ]
    return b"".join([*parts, b"u."])


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def pickled_integer(number: int) -> bytes:
    """Return the opcode of an integer from 0 below 2^63: four bytes where they do, else eight."""
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)
