"""PyTorch's checkpoint files (.pth, .ckpt, .bin) and safetensors, read without PyTorch.

Both containers of torch.save keep the values of tensors apart from the pickle that describes them,
so a tensor is a read-only view of the mapped file: what nobody touches is never read.
"""

import io
import itertools
import mmap
import os
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dimo_jax.common import readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.convert.formats import safetensors_files, torch_pickle

# Where training programs put the weights; a file with more than one says nothing of which is meant.
STATE_DICT_NAMES = (
    *("model_state_dict", "state_dict", "model", "module"),
    *("ema", "model_ema", "ema_model", "params_ema", "params", "generator"),
)
# Of DistributedDataParallel and torch.compile.
WRAPPERS = ("module.", "_orig_mod.")
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Members that were compressed after PyTorch wrote them are unpacked in memory. Real weights hardly
# shrink; something that unpacks to far more than its file is a trap.
MAX_UNPACKED_RATIO, MAX_UNPACKED_BYTES = 16, 1 << 26
MAX_LISTED = 8


def read(path: str | os.PathLike) -> Any:
    """Return the object that torch.save wrote, without running anything that the file asks for.

    Args:
        path: a file of either container: zip (PyTorch 1.6 and later) or legacy.

    Returns:
        Plain data with every tensor as a read-only array: a view of the mapped file, with the
        strides it was saved with (bfloat16 and float8 are ml_dtypes'). Tensors that shared memory
        share it again. Objects that only carry metadata are torch_pickle.Inert.

    Raises:
        InputError: the file is missing, damaged, something else, or asks for anything but tensors
            and plain data.
    """
    path = Path(path)
    try:
        view = _map(path)
        head = view[:512]
        if head[:4] == b"PK\x03\x04":
            return _read_zip(path, view)
        if head[:1] == b"\x80":
            return _read_legacy(path, view)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # zipfile and NumPy raise whatever they stumble over
        raise InputError(
            f"{path} is cut off or damaged ({type(error).__name__}: {shown(error)}); "
            "download or copy it again"
        ) from error
    raise InputError(f"{path} is no PyTorch checkpoint: {_recognised(head)}")


def release(array: np.ndarray) -> None:
    """Let the kernel take back what was read of an array's file; it is read anew if needed.

    Without it a large file's pages count as this process's memory beside what was made of them.

    Args:
        array: from `read` or `state_dict`; any other is left alone.
    """
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def _map(path: Path) -> mmap.mmap:
    if not path.is_file():
        raise InputError(f"there is no file {path}; give the path of a checkpoint file")
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise InputError(f"{path} is empty; download or copy it again")
        # The map lives as long as an array made of it.
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _recognised(head: bytes) -> str:
    if head[257:262] == b"ustar":
        return (
            "it is the tar container of PyTorch 0.1, which is not read; load it with PyTorch and "
            "save it again"
        )
    if _is_safetensors(head):
        return "it is a safetensors file; give it the suffix .safetensors"
    if what := readers.recognised(head):
        return f"it is {what}"
    return f"it begins with {head[:8]!r}; expected a file of torch.save"


def _is_safetensors(head: bytes) -> bool:
    return head[8:10] == b'{"'


def _read_zip(path: Path, view: mmap.mmap) -> Any:
    content = np.frombuffer(view, np.uint8)
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path} begins as a file of torch.save, but after {len(content)} bytes the list of "
            "members at its end is missing or damaged; download or copy it again"
        ) from error
    with archive:
        members = {info.filename: info for info in archive.infolist()}
        root = _root(path, members)
        _check_unpacked_size(path, members.values(), len(content))
        loaded: dict[str, np.ndarray] = {}

        def member(name: str) -> np.ndarray:
            if name not in loaded:
                info = members.get(root + name)
                if info is None:
                    raise ValueError(f"the member {name} is missing")
                stored = info.compress_type == zipfile.ZIP_STORED
                loaded[name] = (
                    _stored(content, info)
                    if stored
                    else np.frombuffer(archive.read(info), np.uint8)
                )
            return loaded[name]

        def load(storage: torch_pickle.Storage) -> np.ndarray:
            return _checked(member(f"data/{storage.key}"), storage)

        if f"{root}byteorder" in members:  # since PyTorch 2.1
            _check_byte_order(path, bytes(member("byteorder")) == b"little")
        return torch_pickle.interpret(io.BytesIO(member("data.pkl")), load, path)


def _root(path: Path, members: Mapping[str, zipfile.ZipInfo]) -> str:
    """Return what stands before data.pkl in the names of all members."""
    roots = [x.removesuffix("data.pkl") for x in members if f"/{x}".endswith("/data.pkl")]
    if len(roots) != 1:
        raise InputError(
            f"{path} is a zip archive with {len(roots)} members data.pkl, expected one; give a "
            "file of torch.save"
        )
    if f"{roots[0]}constants.pkl" in members:
        raise InputError(f"{path} is a TorchScript program; save its state_dict() with torch.save")
    return roots[0]


def _check_unpacked_size(path: Path, members: Iterable[zipfile.ZipInfo], file_bytes: int) -> None:
    unpacked = sum(x.file_size for x in members if x.compress_type != zipfile.ZIP_STORED)
    if unpacked > MAX_UNPACKED_RATIO * file_bytes + MAX_UNPACKED_BYTES:
        raise InputError(
            f"{path} of {file_bytes} bytes unpacks to {unpacked}, which weights do not; zip it "
            "again without compression"
        )


def _stored(content: np.ndarray, info: zipfile.ZipInfo) -> np.ndarray:
    """Return the bytes of a member that is not compressed."""
    start = info.header_offset
    header = bytes(content[start : start + 30]) if start >= 0 else b""
    if len(header) < 30 or header[:4] != b"PK\x03\x04" or info.flag_bits & 1:
        raise ValueError(f"the member {info.filename} is damaged or encrypted")
    # The local header pads itself so that the data is aligned; the list at the end does not say.
    start += 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:], "little")
    if info.file_size != info.compress_size or start + info.file_size > len(content):
        raise ValueError(f"the member {info.filename} reaches past the end of the file")
    return content[start : start + info.file_size]


def _read_legacy(path: Path, view: mmap.mmap) -> Any:
    storages: dict[str, torch_pickle.Storage] = {}

    def note(storage: torch_pickle.Storage) -> None:
        storages.setdefault(storage.key, storage)

    magic = torch_pickle.interpret(view, note, path)
    if type(magic) is not int or magic != LEGACY_MAGIC:
        raise InputError(
            f"{path} is a pickle of something else, expected a file of torch.save; of Inception "
            "give pt_inception-2015-12-05-6726825d.pth"
        )
    protocol, system = (torch_pickle.interpret(view, note, path) for _ in range(2))
    if type(protocol) is not int or protocol != LEGACY_PROTOCOL:
        raise ValueError("the protocol is not 1001")
    _check_byte_order(path, system["little_endian"] is True)
    # The values follow the pickle that needs them, and only it says how large their elements are:
    # it is gone through twice.
    start = view.tell()
    torch_pickle.interpret(view, note, path)
    keys = torch_pickle.interpret(view, note, path)
    position, content = view.tell(), np.frombuffer(view, np.uint8)
    loaded: dict[str, np.ndarray] = {}
    if type(keys) is not list or any(type(x) is not str for x in keys):
        raise ValueError("the list of storages is none")
    if set(keys) != set(storages):
        raise ValueError("the storages listed are not those of the tensors")
    for key in keys:
        numel, begin = view[position : position + 8], position + 8
        position = begin + storages[key].nbytes
        if len(numel) < 8 or position > len(content):
            raise InputError(f"{path} ends inside storage {key}; download or copy it again")
        if int.from_bytes(numel, "little", signed=True) != storages[key].numel:
            raise ValueError(f"storage {key} has another size than its tensors say")
        loaded[key] = content[begin:position]
    view.seek(start)
    return torch_pickle.interpret(view, lambda x: _checked(loaded[x.key], x), path)


def _checked(content: np.ndarray, storage: torch_pickle.Storage) -> np.ndarray:
    if len(content) != storage.nbytes:
        raise ValueError(
            f"storage {storage.key} has {len(content)} bytes, expected {storage.nbytes}"
        )
    return content


def _check_byte_order(path: Path, is_little: bool) -> None:
    if not is_little:
        raise InputError(
            f"{path} was written on a big-endian machine, expected little-endian; load it with "
            "PyTorch on a common machine and save it again"
        )


def state_dict(path: str | os.PathLike, at: str | None = None) -> dict[str, np.ndarray]:
    """Return a model's tensors by name, from a file of torch.save or of safetensors.

    Args:
        path: the file.
        at: the key of the state dict in the file, or what its keys begin with before a dot; None
            for the file's object itself if all of it is tensors, else the one of STATE_DICT_NAMES
            that it has.

    Returns:
        {key: array} in the file's order, with the WRAPPERS stripped off the front of every key.
        From torch.save the arrays are views of the mapped file; from safetensors in memory.

    Raises:
        InputError: as `read`, or there is no state dict, or more than one.
    """
    path = Path(path)
    content = safetensors_files.read(_map(path), path) if _holds_safetensors(path) else read(path)
    state: dict[str, np.ndarray] = {}
    for key, value in _find(content, at, path).items():
        short = key
        while short.startswith(WRAPPERS):
            short = short.removeprefix(WRAPPERS[0]).removeprefix(WRAPPERS[1])
        if short in state:
            raise InputError(
                f"{path} holds {shown(short)} both with and without the prefix "
                f"{' or '.join(WRAPPERS)}; rename one of them"
            )
        state[short] = value
    if at is None or at in content:
        return state
    inner = {key[len(at) + 1 :]: x for key, x in state.items() if key.startswith(f"{at}.")}
    if not inner:
        raise InputError(f"{path} holds {_listed(content)}, but nothing under --key={at}")
    return inner


def _find(content: Any, at: str | None, path: Path) -> dict[str, np.ndarray]:
    """Return the state dict inside a file's object."""
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a {type(content).__name__}, expected a dict of tensors; save the "
            "model's state_dict()"
        )
    if at is not None and at in content:
        found = content[at]
    elif content and all(isinstance(x, np.ndarray) for x in content.values()):
        found = content
    else:
        known = [x for x in STATE_DICT_NAMES if x in content]
        models = [x for x in known if _is_state(content[x])]
        if at is None and len(models) > 1:
            raise InputError(
                f"{path} holds weights under each of {', '.join(models)}, of which a training "
                "program averages one; choose with --key"
            )
        found = next((content[x] for x in models or known), None)
    if not isinstance(found, dict) or not found:
        places = STATE_DICT_NAMES if at is None else (at,)
        raise InputError(
            f"{path} holds {_listed(content)}, expected a dict of tensors under "
            f"{' or '.join(places)}; name the key it is under with --key"
        )
    wrong = [k for k, v in found.items() if type(k) is not str or not isinstance(v, np.ndarray)]
    if wrong:
        raise InputError(
            f"{path} holds other things than tensors in its state dict: {_listed(wrong)}; save "
            "the model's state_dict() alone"
        )
    return found


def _is_state(found: Any) -> bool:
    tensors = isinstance(found, dict) and all(isinstance(x, np.ndarray) for x in found.values())
    return tensors and bool(found)


def _listed(keys: Collection) -> str:
    names = [shown(x) for x in itertools.islice(keys, MAX_LISTED)]
    more = f" and {len(keys) - MAX_LISTED} more" if len(keys) > MAX_LISTED else ""
    return f"{', '.join(names) or 'nothing'}{more}"


def _holds_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    try:
        with open(path, "rb") as file:
            return _is_safetensors(file.read(16))
    except OSError:
        return False  # `read` says why
