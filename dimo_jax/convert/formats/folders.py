"""Checkpoints that are a folder: weights in one file or in several, and the JSON that goes with it.

The layout of Hugging Face's libraries, and of open_clip's files on its hub.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dimo_jax.common import readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import quoted, shown
from dimo_jax.convert.formats import torch_files

TRANSFORMERS_WEIGHTS = "model.safetensors"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
_WHOLE = (
    TRANSFORMERS_WEIGHTS,
    "pytorch_model.bin",
    DIFFUSERS_WEIGHTS,
    "diffusion_pytorch_model.bin",
)
_OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# Weights, in the order they are looked for, and the JSON that describes them: float32 before
# float16, of which there is less to know; each whole or in parts with an index.
_DESCRIBED_BY = {
    **{
        f"{stem}{form.format(suffix)}": "config.json"
        for stem, suffix in (name.split(".") for name in _WHOLE)
        for form in (
            ".{}",
            ".{}.index.json",
            ".fp16.{}",
            ".fp16.{}.index.json",
            ".{}.index.fp16.json",
            ".{}.fp16.index.json",
        )
    },
    **dict.fromkeys(_OPEN_CLIP, "open_clip_config.json"),
}
_INDEX = ".index."  # diffusers writes .index.fp16.json too


def weights(path: Path) -> Path:
    """Return the file of a checkpoint that its tensors are found by.

    Args:
        path: a file, which is returned; or a folder of one model.

    Returns:
        The weights, or the index of their parts.

    Raises:
        InputError: the folder has no weights.
    """
    if not path.is_dir():
        return path
    for name in _DESCRIBED_BY:
        if (path / name).is_file():
            return path / name
    raise InputError(
        f"{path} has no weights; one of {', '.join((*_WHOLE, *_OPEN_CLIP))}, of float16 or parts "
        "with an index was expected in it; download the rest of the folder"
    )


def parts(path: Path) -> list[Path]:
    """Return the files that hold a checkpoint's tensors.

    Args:
        path: as `weights` gives it.

    Returns:
        One file, or in the order of their names those that an index lists.

    Raises:
        InputError: the index is damaged, lists a file elsewhere, or one that is missing.
    """
    if _INDEX not in path.name:
        return [path]
    names = sorted(set(_weight_map(path).values()))
    # A name with a folder in it would read files that are none of this checkpoint.
    if strange := [name for name in names if Path(name).name != name or len(name) > 200]:
        raise InputError(f"{path} lists {quoted(strange[0])}, expected a file beside it")
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise InputError(
            f"{path} lists {len(names)} parts, of which {shown(', '.join(missing))} "
            f"{'is' if len(missing) == 1 else 'are'} missing; download the rest"
        )
    return [path.parent / name for name in names]


def _weight_map(path: Path) -> Mapping[str, str]:
    found = readers.json_object(path).get("weight_map")
    texts = isinstance(found, dict) and all(isinstance(name, str) for name in found.values())
    if not texts or not found:
        raise InputError(f"{path} has no weight_map of file names; download it again")
    return found


def read(path: Path, at: str | None = None) -> dict[str, np.ndarray]:
    """Return the tensors of a checkpoint.

    Args:
        path: as `weights` gives it.
        at: as for torch_files.state_dict.

    Returns:
        {key: array}, as torch_files.state_dict.

    Raises:
        InputError: as `parts` and torch_files.state_dict, or a part lacks tensors that the index
            says it has.
    """
    if _INDEX not in path.name:
        return torch_files.state_dict(path, at)
    state: dict[str, np.ndarray] = {}
    for part in parts(path):
        found = torch_files.state_dict(part, at)
        if repeated := state.keys() & found.keys():
            raise InputError(
                f"{part} repeats {shown(min(repeated))} of another part; download it again"
            )
        state |= found
    lacking = [key for key in _weight_map(path) if key not in state]
    if lacking:
        raise InputError(
            f"{path} lists {len(lacking)} tensors that its parts do not have, "
            f"{shown(lacking[0])} for one; download index and parts again"
        )
    return state


def description(path: Path) -> dict[str, Any] | None:
    """Return the JSON that describes weights, by the name that goes with theirs.

    Args:
        path: as `weights` gives it.

    Returns:
        As parsed; None where there is none.

    Raises:
        InputError: it is damaged.
    """
    name = _DESCRIBED_BY.get(path.name)
    if name is None or not (path.parent / name).is_file():
        return None
    return readers.json_object(path.parent / name)
