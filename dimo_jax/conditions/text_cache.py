"""Text features of a list of prompts on disk, computed once; in ranges, so that a kill costs one.

Several processes compute ranges in turn on a disk that they share, and read all of them. Axes: N
prompts, T ids of a text, E width of the tower, P projection.
"""

import functools
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Float, Int

from dimo_jax.common import archives, files, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress
from dimo_jax.parallel import distributed

RANGE_SIZE = 1024  # prompts of a file: 160 MB of CLIP-H in bfloat16
SETTINGS_FILE = "cache.json"
_OPEN_FILES = 256
_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

Features = Mapping[str, Float[np.ndarray, "N ..."]]


class TextCache:
    """The features of all prompts of a run.

    Args:
        folder: where they lie; a new one, or of the same prompts, encoder and dtype.
        num: N.
        shapes: {name: shape of one prompt's}, e.g. states and pooled.
        dtype: a key of _DTYPES: what the run computes in, so that nothing is lost.
        identity: plain values that decide the features.

    Raises:
        InputError: the folder is of something else, or in an object store.
    """

    def __init__(
        self,
        folder: str | Path,
        num: int,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: str,
        identity: Mapping[str, str],
    ):
        self.folder, self._num, self._shapes = files.local(folder), num, dict(shapes)
        self._dtype, self._width = _DTYPES[dtype], sum(map(math.prod, shapes.values()))
        self._settings = {**identity, "dtype": dtype, "prompts_in_a_file": RANGE_SIZE}
        self._range = RANGE_SIZE
        self._check_folder()
        self._open = functools.lru_cache(_OPEN_FILES)(self._map)

    @property
    def num_bytes(self) -> int:
        """Of the whole cache."""
        return self._num * self._width * self._dtype.itemsize

    def fill(self, encode: Callable[[Int[np.ndarray, "N"]], Features]) -> None:
        """Compute what is missing; every process of a run calls it.

        Says first how much the disk needs.

        Args:
            encode: numbers of prompts -> their features, float32.

        Raises:
            InputError: the disk has less room than that, or the processes do not share it.
        """
        starts = range(0, self._num, self._range)
        mine = starts[jax.process_index() :: jax.process_count()]
        # Read once, at over 1 GB/s: a wrong bit would be trained on without a word.
        left = [start for start in mine if not self._is_whole(start, check=True)]
        total, done = (sum(map(self._length, some)) for some in (mine, set(mine) - set(left)))
        with Progress("text features", silent=not distributed.is_lead()) as progress:
            # Whoever looks at the folder after this finds what the lead writes now.
            distributed.barrier("text features begin")
            if left:
                self._check_space(progress)
            if distributed.is_lead() and not (self.folder / SETTINGS_FILE).exists():
                text = json.dumps(self._settings, indent=1)
                files.write_file(self.folder / SETTINGS_FILE, text.encode())
            if damaged := [start for start in left if self._path(start).exists()]:
                first = self._path(damaged[0])
                progress.note(f"{len(damaged)} damaged files, {first} for one, are made again")
            progress.update(done, total, "prompts")
            for start in left:
                numbers = np.arange(start, start + self._length(start))
                self._save(start, encode(numbers))
                done += len(numbers)
                progress.update(done, total, "prompts")
        distributed.barrier("text features")
        if not distributed.agree(all(self._is_whole(start) for start in starts)):
            raise InputError(
                f"not all processes see all of {self.folder}; config.prompts.cache must be on a "
                "disk that all of them share"
            )

    def rows(self, numbers: Int[np.ndarray, "N"]) -> dict[str, Float[np.ndarray, "N ..."]]:
        """Features of some prompts, float32.

        Raises:
            InputError: a file was damaged or removed since `fill`.
        """
        flat = np.empty((len(numbers), self._width), np.float32)
        for row, number in zip(flat, np.asarray(numbers), strict=True):
            start = int(number) // self._range * self._range
            row[:] = self._open(start)[int(number) - start].view(self._dtype)
        ends = np.cumsum([math.prod(shape) for shape in self._shapes.values()])
        parts = np.split(flat, ends[:-1], axis=1)
        return {
            name: part.reshape(len(numbers), *shape)
            for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)
        }

    def _check_folder(self) -> None:
        path = self.folder / SETTINGS_FILE
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"config.prompts.cache={self.folder} is a file; name a folder")
        if not path.exists():
            # A name with a dot in front is of a file that a kill left half-written.
            names = [x.name for x in self.folder.iterdir()] if self.folder.is_dir() else []
            if any(not name.startswith(".") for name in names):
                raise InputError(
                    f"config.prompts.cache={self.folder} holds other files; name a new folder"
                )
            return
        found = readers.json_object(path)
        if found != self._settings:
            wrong = [name for name, value in self._settings.items() if found.get(name) != value]
            raise InputError(
                f"config.prompts.cache={self.folder} has features of other {', '.join(wrong)}; "
                "name a new folder, or remove this one"
            )

    def _check_space(self, progress: Progress) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        there = sum(path.stat().st_size for path in self.folder.glob("*.npy"))
        needed, free = self.num_bytes - there, shutil.disk_usage(self.folder).free
        size = f"features of {self._num:,} prompts take {self.num_bytes / 1e9:.3g} GB"
        if needed > free:
            raise InputError(
                f"{size} in {self.folder}, where {free / 1e9:.3g} GB are free; give another "
                "config.prompts.cache, or none: they are then computed as they are needed"
            )
        progress.note(f"{size} in {self.folder} ({free / 1e9:.3g} GB free)")

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:09d}.npy"

    def _length(self, start: int) -> int:
        return min(self._range, self._num - start)

    def _is_whole(self, start: int, check: bool = False) -> bool:
        try:
            return self._map(start, check).shape == (self._length(start), self._bytes_of_row())
        except InputError:
            return False

    def _bytes_of_row(self) -> int:
        return self._width * self._dtype.itemsize

    def _map(self, start: int, check: bool = False) -> np.ndarray:
        try:
            return archives.map_npy(self._path(start), check)
        except InputError as error:
            raise InputError(f"{error}; start the run again, which makes it anew") from error

    def _save(self, start: int, found: Features) -> None:
        rows = [np.asarray(found[name], np.float32) for name in self._shapes]
        flat = np.concatenate([x.reshape(len(x), -1) for x in rows], axis=1).astype(self._dtype)
        with files.writing(self._path(start)) as file:
            # As bytes: NumPy's format does not know bfloat16.
            archives.write_npy(file, flat.view(np.uint8))
