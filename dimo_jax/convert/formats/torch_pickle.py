"""What a pickle of torch.save holds, read without unpickling: nothing that a file asks for is run.

pickletools.genops cuts the bytes into opcodes; the machine below acts on those that build plain
data and tensors. A class or function is only a name, looked up in this file's tables: no module is
imported for it, no attribute set or fetched. Python's own Unpickler, restricted by find_class,
would still set attributes, grow its memo to any index, and crash on a deep tuple (Python 3.11).
Over 350 lines: the interpreter is one table of opcodes, to be checked in one place.
"""

import dataclasses
import math
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown

# Of torch.dtype, by name. The containers refuse files of the other byte order.
DTYPES = {
    **{"float32": np.dtype("<f4"), "float64": np.dtype("<f8"), "float16": np.dtype("<f2")},
    **{"complex64": np.dtype("<c8"), "complex128": np.dtype("<c16"), "bool": np.dtype("?")},
    **{f"int{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{x: np.dtype(getattr(ml_dtypes, x)) for x in ("bfloat16", "float8_e4m3fn", "float8_e5m2")},
}
# Classes of torch. A tensor of any other dtype lies in an untyped storage and names its dtype.
STORAGES = {
    "FloatStorage": DTYPES["float32"],
    "DoubleStorage": DTYPES["float64"],
    "HalfStorage": DTYPES["float16"],
    "BFloat16Storage": DTYPES["bfloat16"],
    "LongStorage": DTYPES["int64"],
    "IntStorage": DTYPES["int32"],
    "ShortStorage": DTYPES["int16"],
    "CharStorage": DTYPES["int8"],
    "ByteStorage": DTYPES["uint8"],
    "BoolStorage": DTYPES["bool"],
    "ComplexFloatStorage": DTYPES["complex64"],
    "ComplexDoubleStorage": DTYPES["complex128"],
}

# Elements of a tensor that `expand` made larger than its storage; positions of a text, for one.
_MAX_REPEATED = 1 << 20

# Training programs keep objects of these beside the weights; each becomes an `Inert`.
INERT_MODULES = (
    *("pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics", "torch.optim"),
    *("omegaconf", "ml_collections", "argparse", "typing", "pathlib", "datetime", "numpy"),
)
_BUILTINS = "object type list dict set frozenset tuple int float complex bool str bytes slice range"
INERT_NAMES = {
    *((module, name) for module in ("builtins", "__builtin__") for name in _BUILTINS.split()),
    *(("collections", name) for name in ("defaultdict", "deque", "Counter")),
    *((module, "_reconstructor") for module in ("copyreg", "copy_reg")),
    # How Python 3 writes bytes in a pickle that Python 2 can read.
    ("_codecs", "encode"),
    *(("torch", "device"), ("torch", "Tensor"), ("torch.nn.parameter", "Parameter")),
}


class Inert:
    """A class of the file, or an object of one, that was not loaded: it has a name, no content."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:  # noqa: D105
        return f"<{self.name}, not loaded>"


@dataclasses.dataclass(frozen=True)
class Storage:
    """The flat memory that one or several tensors of a file are views of.

    Attributes:
        key: its name in the file.
        dtype: of its elements; uint8 for an untyped one.
        numel: how many there are.
    """

    key: str
    dtype: np.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return self.numel * self.dtype.itemsize


def interpret(
    stream: BinaryIO | Any, load: Callable[[Storage], np.ndarray | None], path: Path
) -> Any:
    """Return the object of one pickle; the stream is left right behind it.

    Args:
        stream: anything with read, readline and tell.
        load: a storage -> all its bytes, uint8 of one axis, or None if they are not to be had yet:
            then its tensors become None too.
        path: the file, for messages.

    Returns:
        Plain data with tensors as views of what `load` returned. OrderedDict becomes dict; classes
        of INERT_MODULES and INERT_NAMES and their objects become `Inert`. It may contain itself.

    Raises:
        InputError: it asks for anything else, or it is damaged.
    """
    machine = Machine(load, path)
    position = 0
    try:
        for opcode, argument, position in pickletools.genops(stream):  # noqa: B007
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except InputError:
        raise
    except Exception as error:  # whatever breaks in here breaks on what the file says
        raise InputError(
            f"{path} is cut off or damaged: its pickle fails at byte {position} "
            f"({type(error).__name__}: {shown(error)}); download or copy it again"
        ) from error


@dataclasses.dataclass(frozen=True)
class _StorageType:
    dtype: np.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class _Loaded:
    storage: Storage
    content: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Function:
    """What is called for a name that may be called: ours, not the file's."""

    call: Callable


def sizes(values: Any) -> tuple[int, ...]:
    """Whole numbers from 0 on, such as a shape; ValueError for anything else."""
    if type(values) not in (tuple, list) or len(values) > 64:
        raise ValueError("a shape or stride is no short list")
    if any(type(x) is not int or x < 0 for x in values):
        raise ValueError("a shape, stride or offset is not an integer >= 0")
    return tuple(values)


def _tensor(loaded: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> np.ndarray | None:
    """Return a view of a storage; offset and strides count elements.

    The rest is empty (before PyTorch 0.4), or requires_grad, hooks (none are ever written), then
    the dtype if the storage is untyped, then marks.
    """
    if not isinstance(loaded, _Loaded):
        raise ValueError("a tensor has no storage")
    if any(isinstance(x, dict) and x for x in rest):
        raise ValueError("a tensor is marked as conjugated or negated")
    dtype = next((x for x in rest if isinstance(x, np.dtype)), loaded.storage.dtype)
    shape, strides, (offset,) = sizes(shape), sizes(strides), sizes((offset,))
    if len(shape) != len(strides):
        raise ValueError(f"a tensor has {len(shape)} axes and {len(strides)} strides")
    if loaded.content is None:
        return None
    if 0 in shape:
        return np.empty(shape, dtype)
    size = dtype.itemsize
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if (last + 1) * size > loaded.storage.nbytes:
        raise ValueError(f"a tensor reaches past the end of storage {loaded.storage.key}")
    # With a stride of 0, or overlapping rows, a few bytes stand for any number of elements.
    if math.prod(shape) > max(loaded.storage.numel, _MAX_REPEATED):
        raise ValueError(f"a tensor repeats storage {loaded.storage.key} to {shape}")
    return np.ndarray(shape, dtype, loaded.content, offset * size, [s * size for s in strides])


def _tensor_with_attributes(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    if not isinstance(function, Function) or function.call is not _tensor:
        raise ValueError("a tensor is made by something else")
    return _tensor(*arguments)


_KNOWN = {
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()},
    ("torch.storage", "UntypedStorage"): _StorageType(DTYPES["uint8"]),
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
    ("collections", "OrderedDict"): Function(lambda: {}),
    ("torch", "Size"): Function(sizes),
    **{("torch._utils", f"_rebuild_tensor{end}"): Function(_tensor) for end in ("", "_v2", "_v3")},
    **{
        ("torch._utils", f"_rebuild_parameter{end}"): Function(lambda data, *rest: data)
        for end in ("", "_with_state")
    },
    ("torch._tensor", "_rebuild_from_type_v2"): Function(_tensor_with_attributes),
}
_PUSHED = frozenset(
    "BININT BININT1 BININT2 INT LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES "
    "BINBYTES8 BYTEARRAY8".split()
)
_MADE = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set},
    **{"DICT": dict, "LIST": list, "FROZENSET": set},
}
_KEYS = (str, bytes, int, float, type(None), Inert, np.dtype)


def _hashable(key: Any) -> Any:
    # The hash of a tuple recurses in C without a limit: no tuples inside tuples.
    if isinstance(key, _KEYS) or (type(key) is tuple and all(isinstance(x, _KEYS) for x in key)):
        return key
    raise ValueError(f"a {type(key).__name__} is used as a key")


class Machine:
    """The pickle format's stack machine, for the opcodes that plain data and tensors need."""

    def __init__(self, load: Callable[[Storage], np.ndarray | None], path: Path):
        self.load, self.path = load, path
        self.stack: list = []
        self.below: list[list] = []  # what lies under each open MARK
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Do one opcode; `argument` is the value that follows it in the file."""
        stack = self.stack
        match name:
            case _ if name in _PUSHED:
                stack.append(argument)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "MARK":
                self.below.append(stack)
                self.stack = []
            case "DICT" | "LIST" | "FROZENSET":
                items = self.marked()
                self.stack.append(_MADE[name]())
                self.fill(items)
            case _ if name in _MADE:
                stack.append(_MADE[name]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.pop(int(name[-1]))))
            case "TUPLE":
                items = tuple(self.marked())
                self.stack.append(items)
            case "SETITEM":
                self.fill(self.pop(2))
            case "APPEND":
                self.fill(self.pop(1))
            case "SETITEMS" | "APPENDS" | "ADDITEMS":
                self.fill(self.marked())
            case "BINPERSID":
                stack.append(self.storage(stack.pop()))
            case "GLOBAL":
                stack.append(self.find(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(self.find(*self.pop(2)))
            case "REDUCE" | "NEWOBJ":
                stack.append(self.call(*self.pop(2)))
            case "NEWOBJ_EX":
                function, arguments, _ = self.pop(3)
                stack.append(self.call(function, arguments))
            case "INST" | "OBJ":
                items = self.marked()
                function = self.find(*argument.split(" ", 1)) if argument else items.pop(0)
                self.stack.append(self.call(function, tuple(items)))
            case "BUILD":
                self.pop(1)  # attributes, such as a state dict's _metadata
                if not isinstance(stack[-1], dict | Inert):
                    raise ValueError(f"attributes are set on a {type(stack[-1]).__name__}")
            case "DUP":
                stack.append(stack[-1])
            case "POP" if stack:
                stack.pop()
            case "POP" | "POP_MARK":
                self.marked()
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise ValueError(f"the opcode {name} is none that torch.save writes")

    def pop(self, count: int) -> list:
        """Return the top of the stack, in the order it was pushed."""
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def marked(self) -> list:
        """Everything above the last MARK; self.stack is then what lay under it."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def fill(self, items: list) -> None:
        """Put items into the container on top; those of a dict are key, value, key, value."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(map(_hashable, items))
        elif isinstance(target, dict):
            target.update(zip(map(_hashable, items[::2]), items[1::2], strict=True))
        elif not isinstance(target, Inert):
            raise ValueError(f"items are put into a {type(target).__name__}")

    def find(self, module: Any, name: Any) -> Any:
        """Return what a name means here."""
        if type(module) is not str or type(name) is not str:
            raise ValueError("a class is not named by text")
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        full = shown(f"{module}.{name}")
        known = any(module == x or module.startswith(f"{x}.") for x in INERT_MODULES)
        if known or (module, name) in INERT_NAMES:
            return Inert(full)
        raise InputError(
            f"{self.path} asks for {full}, which is not a tensor or plain data; nothing of it was "
            "run; get the checkpoint from its authors again or convert it to safetensors"
        )

    def call(self, function: Any, arguments: Any) -> Any:
        """Make an object."""
        if isinstance(function, Inert):
            return Inert(function.name)
        if not isinstance(function, Function) or type(arguments) is not tuple:
            raise ValueError(f"a {type(function).__name__} is called")
        return function.call(*arguments)

    def storage(self, identity: Any) -> _Loaded:
        """Return the storage of a persistent id."""
        match identity:
            # The sixth field is of the legacy container: the view of another storage.
            case ("storage", _StorageType(dtype), str(key), _, int(numel), *view):
                if view not in ([], [None]):
                    raise ValueError("a storage is a view of another, as before PyTorch 0.4")
                storage = Storage(key, dtype, *sizes((numel,)))
                return _Loaded(storage, self.load(storage))
        raise ValueError("a storage is not named as torch.save does")
