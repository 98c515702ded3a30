"""Nested dicts of NumPy arrays out of a plain pickle, read without unpickling.

The interpreter of `torch_pickle` does the work; here it also learns how NumPy writes an array, with
its bytes inside the pickle. Nothing that a file asks for is run.
"""

import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.convert.formats import torch_files, torch_pickle

_MAX_DEPTH = 16
_DTYPES = frozenset(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)) | {"f2", "f4", "f8"}


def recognised(head: bytes) -> bool:
    """Return whether a file with these first 32 bytes is a plain pickle, not one of torch.save.

    Args:
        head: the beginning; PyTorch's legacy container is a row of pickles, of which the first is
            a certain number.
    """
    magic = torch_files.LEGACY_MAGIC.to_bytes(10, "little")
    return head[:1] == b"\x80" and magic not in head


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a pickled dict of dicts.

    Args:
        path: the file.

    Returns:
        {"outer/inner": array} in the file's order; read-only.

    Raises:
        InputError: the file is damaged, holds anything else, or asks for anything but arrays.
    """
    data = path.read_bytes()
    machine = _Machine(_no_storage, path)
    position = 0
    try:
        for opcode, argument, position in pickletools.genops(data):  # noqa: B007
            machine.step(opcode.name, argument)
        tree = machine.stack.pop()
    except InputError:
        raise
    except Exception as error:  # whatever breaks in here breaks on what the file says
        raise InputError(
            f"{path} is cut off or damaged: its pickle fails at byte {position} "
            f"({type(error).__name__}: {shown(error)}); download or copy it again"
        ) from error
    state: dict[str, np.ndarray] = {}
    wrong = _flatten(tree, "", state, set())
    if wrong or not state:
        raise InputError(
            f"{path} is a pickle with {shown(wrong or 'no array')}, expected dicts of "
            "arrays and nothing else; give a checkpoint file"
        )
    return state


def _flatten(tree: Any, prefix: str, state: dict[str, np.ndarray], seen: set[int]) -> str | None:
    """Put the arrays into `state`; the first other thing, in words."""
    if not isinstance(tree, dict):
        return f"a {type(tree).__name__} at {prefix or 'its top'}"
    # A dict may hold itself, or one dict many times over: each is gone through once, and not deep.
    if id(tree) in seen or prefix.count("/") > _MAX_DEPTH:
        return f"dicts inside each other at {prefix}"
    seen.add(id(tree))
    for key, value in tree.items():
        if type(key) is not str:
            return f"a key that is no text in {prefix or 'its top'}"
        if isinstance(value, _Array) and value.content is not None:
            state[f"{prefix}{key}"] = value.content
        elif wrong := _flatten(value, f"{prefix}{key}/", state, seen):
            return wrong
    return None


def _no_storage(storage: torch_pickle.Storage) -> None:
    raise ValueError("a tensor of PyTorch lies in a plain pickle")


class _Dtype:
    """A dtype while its byte order has not been read yet."""

    def __init__(self, code: Any, *rest: Any):
        if code not in _DTYPES:
            raise ValueError("an array has a dtype that is none of numbers")
        self.dtype = np.dtype(code)

    def build(self, state: tuple) -> None:
        order = state[1]
        if order not in ("<", "|", "="):
            raise ValueError("an array is not little-endian")


class _Array:
    """An array, empty until its state is read."""

    def __init__(self, *arguments: Any):
        self.content: np.ndarray | None = None

    def build(self, state: tuple) -> None:
        shape, dtype, fortran, data = state[-4:]
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> "_Array":
        if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Dtype):
            raise ValueError("an array has no bytes or no dtype")
        order = "F" if order == "F" else "C"
        content = np.frombuffer(bytes(data), dtype.dtype.newbyteorder("<"))
        self.content = content.reshape(torch_pickle.sizes(shape), order=order)
        return self


def _encoded(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes in a pickle of protocol 2.
    if encoding != "latin1":
        raise ValueError("bytes are not written as latin1")
    return text.encode("latin1")


_KNOWN = {
    ("numpy", "dtype"): torch_pickle.Function(_Dtype),
    ("_codecs", "encode"): torch_pickle.Function(_encoded),
}
# NumPy 2 renamed its core.
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = torch_pickle.Function(_Array)
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = torch_pickle.Function(lambda *x: _Array().fill(*x))


class _Machine(torch_pickle.Machine):
    def find(self, module: Any, name: Any) -> Any:
        known = type(module) is str and type(name) is str and (module, name) in _KNOWN
        return _KNOWN[module, name] if known else super().find(module, name)

    def step(self, name: str, argument: Any) -> None:
        if name == "BUILD" and isinstance(self.stack[-2], _Array | _Dtype):
            (state,) = self.pop(1)
            self.stack[-1].build(state)
        else:
            super().step(name, argument)
