"""A model as diffusers lays it down, written: a folder of config.json and weights."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dimo_jax.common import files
from dimo_jax.common.trees import Tree
from dimo_jax.convert.formats import folders
from dimo_jax.convert.networks import layouts
from dimo_jax.convert.networks.layouts import Entry

CONFIG_FILE = "config.json"
_CHUNK_ELEMENTS = 1 << 24
# diffusers 0.30, the authors', refuses a file that does not say whose format it is. Who wrote it
# decides whether it may be replaced.
_METADATA = {"format": "pt", "written_by": "dimo_jax"}
_START = json.dumps({"__metadata__": _METADATA}, separators=(",", ":"))[:-1].encode()


def write(
    folder: Path,
    fields: Mapping[str, Any],
    entries: Sequence[Entry],
    params: Tree,
    weights_file: str = folders.DIFFUSERS_WEIGHTS,
    code: Mapping[str, bytes] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Write a model's folder in float32 and read it back.

    Args:
        folder: replaced whole, if there is one.
        fields: of config.json.
        entries: the network's table.
        params: nested dicts of float32 arrays.
        weights_file: its name; of transformers it is another.
        code: {name: content} of files that load it, where no library does.

    Returns:
        {key: shape} of what was written.

    Raises:
        InputError: the folder holds other things than such a model, or cannot be written.
        RuntimeError: what was written is not what was meant.
    """
    content = {CONFIG_FILE: as_json(fields), weights_file: _safetensors(entries, params)}
    replace(folder, {**content, **(code or {})})
    found, shapes = folders.read(folder / weights_file), layouts.state_shapes(entries, params)
    wrong = sorted(set(found) ^ set(shapes)) or [
        entry.key
        for entry in entries
        if not np.array_equal(found[entry.key], layouts.to_state([entry], params)[entry.key])
    ]
    if wrong:
        raise RuntimeError(f"{folder} reads back differently: {', '.join(wrong)}")
    return shapes


def replace(
    folder: Path,
    content: Mapping[str, files.Content],
    names: Iterable[str] | None = None,
    beside: Path | None = None,
) -> None:
    """Write a folder whole.

    Args:
        folder: replaced, if it is one that this function wrote.
        content: as files.write_folder takes it.
        names: all that such a folder may hold; None: those of the content.
        beside: of the model that it goes with, where it has no weights of its own.

    Raises:
        InputError: the folder holds other things, or cannot be written.
    """
    files.write_folder(folder, content, lambda found: foreign(found, names or content, beside))


def foreign(folder: Path, names: Iterable[str], beside: Path | None = None) -> str | None:
    """Names what a folder holds that this module did not write; see files.write_folder.

    A published folder has the same names: the weights say who wrote them.

    Args:
        folder: of a model, or of what goes with one.
        names: of the files that are written there.
        beside: as for `replace`.
    """
    inside = sorted(x.name for x in folder.iterdir())
    if others := [name for name in inside if name not in {*names}]:
        return others[0]
    own = is_own(folder if beside is None else beside)
    return None if own or not inside else f"{inside[0]} of somebody else"


def is_own(folder: Path) -> bool:
    """Return whether the weights in a folder were written by this module."""

    def written_here(weights_file: Path) -> bool:
        with open(weights_file, "rb") as file:
            return file.read(8 + len(_START))[8:] == _START

    return folder.is_dir() and any(map(written_here, folder.glob("*.safetensors")))


def as_json(fields: Mapping[str, Any]) -> bytes:
    """Fields as the content of a JSON file, laid out as diffusers does."""
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()


def _safetensors(entries: Sequence[Entry], params: Tree) -> Iterator[bytes]:
    """Yield a safetensors file piece by piece, of which at most one tensor is a copy in memory.

    The package's own writer (0.8.0) takes all tensors at once, which is the parameters a second
    time, and writes two entries of metadata in a random order: other bytes for the same model.
    Source: the description of the format, github.com/huggingface/safetensors.
    """
    header: dict[str, Any] = {"__metadata__": _METADATA}
    start = 0
    for key, shape in layouts.state_shapes(entries, params).items():
        end = start + 4 * int(np.prod(shape, dtype=np.int64))
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for entry in entries:
        flat = layouts.to_state([entry], params)[entry.key].reshape(-1)
        for i in range(0, len(flat), _CHUNK_ELEMENTS):
            yield np.asarray(flat[i : i + _CHUNK_ELEMENTS], "<f4").tobytes()
