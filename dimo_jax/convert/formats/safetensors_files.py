"""Safetensors files, read as views of the mapped file."""

import mmap
from pathlib import Path

import numpy as np
import safetensors

from dimo_jax.common import readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.convert.formats.torch_pickle import DTYPES

# As the format names them.
_DTYPES = {
    **{"F32": "float32", "F64": "float64", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
_DTYPES = {name: DTYPES[ours] for name, ours in _DTYPES.items()}


def read(view: mmap.mmap, path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a file as views of its map.

    The package checks header, sizes and offsets. Its own reading copies every tensor, and has no
    NumPy dtype for float8 (0.8.0).

    Args:
        view: of the file.
        path: of the file.

    Returns:
        {key: array}, read-only.

    Raises:
        InputError: it is damaged, something else, or has a dtype that is not known here.
    """
    try:
        with safetensors.safe_open(path, framework="np"):
            pass
    except (safetensors.SafetensorError, OSError) as error:
        what = readers.recognised(view[:64])
        what = what or f"damaged or no safetensors file ({shown(error)}); download or copy it again"
        raise InputError(f"{path} is {what}") from error
    start = 8 + int.from_bytes(view[:8], "little")
    header = readers.as_object(readers.parse_json(view[8:start], str(path)), str(path))
    header.pop("__metadata__", None)
    if other := {entry["dtype"] for entry in header.values()} - _DTYPES.keys():
        raise InputError(
            f"{path} holds the dtype {shown(min(other))}, expected "
            f"{', '.join(_DTYPES)}; "
            "save it as float32"
        )
    state = {}
    for name, entry in header.items():
        dtype, (begin, end) = _DTYPES[entry["dtype"]], entry["data_offsets"]
        values = np.frombuffer(view, np.uint8, end - begin, start + begin)
        state[name] = values.view(dtype).reshape(entry["shape"])
    return state
