"""Any published file or folder of one model -> its tensors, and the model inside another's keys."""

from pathlib import Path

import numpy as np

from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.convert import sources
from dimo_jax.convert.formats import folders
from dimo_jax.convert.networks import google


def read(path: str | Path, at: str | None = None) -> dict[str, np.ndarray]:
    """Return the tensors of any file that a source publishes; nothing in it is executed.

    Args:
        path: .pth, .ckpt, .bin (both containers), .safetensors, the index of several of these,
            or Flax's msgpack.
        at: where in a file of PyTorch or of safetensors the weights are: a key, or what their keys
            begin with before a dot.

    Returns:
        {key: array}, views of the mapped file where it can be. Of a training program's file that
        has one known model inside another's keys, such as model.*, that model.

    Raises:
        InputError: the file is missing, damaged, hostile, or of no such format.
    """
    path = Path(path)
    if path.is_file():
        with open(path, "rb") as file:
            head = file.read(2)
        # Flax's msgpack begins with a small map; a pickle with 0x80, which would be an empty one.
        if len(head) > 1 and 0x81 <= head[0] <= 0x8F and path.suffix != ".safetensors":
            return google.from_bytes(path.read_bytes())
    state = folders.read(path, at)
    return state if at is not None or _is_known(state) else _inner(state, path)


def _is_known(state: sources.State) -> bool:
    try:
        sources.recognise(state)
    except InputError:
        return False
    return True


def _inner(state: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Return the one part of a state dict that is of a known source.

    The state dict if there is none.
    """
    inside: dict[str, dict[str, np.ndarray]] = {}
    for key, value in state.items():
        first, dot, rest = key.partition(".")
        if dot:
            inside.setdefault(first, {})[rest] = value
    known = [first for first, part in inside.items() if _is_known(part)]
    if len(known) > 1:
        raise InputError(
            f"{path} holds a model under each of {shown(', '.join(known))}; choose with --key"
        )
    return inside[known[0]] if known else state
