"""Text features of a list of prompts on disk, computed once; in ranges, so that a kill costs one.

Several processes compute ranges in turn on a disk that they share, and read all of them. Axes: N
prompts, T ids of a text, E width of the tower, P projection.
"""

import functools
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Float, Int

from dimo_jax.common import archives, files, resumable
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress
from dimo_jax.common.resumable import Range
from dimo_jax.parallel import distributed, locks

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
        self._range, parts = RANGE_SIZE, resumable.ranges(num, RANGE_SIZE)
        self._store = resumable.Store(
            {part: self.folder / f"{part[0]:09d}.npy" for part in parts}, "prompts", self._is_whole
        )
        self._begun()
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

        def made(left: list[Range]) -> Iterator[int]:
            if left:
                self._check_space(progress)
            if distributed.is_lead() and not self._begun():
                resumable.record(self.folder / SETTINGS_FILE, self._settings)
            for part in left:
                self._save(part, encode(np.arange(*part)))
                yield part[1] - part[0]

        # A process that reads the folder after this finds what the lead writes now.
        distributed.barrier("text features begin")
        with Progress("text features", silent=not distributed.is_lead()) as progress:
            self._store.fill(made, progress, (jax.process_index(), jax.process_count()))
        paths = self._store.paths.values()
        locks.check_shared("text features", paths, self.folder, "config.prompts.cache")

    def rows(self, numbers: Int[np.ndarray, "N"]) -> dict[str, Float[np.ndarray, "N ..."]]:
        """Features of some prompts, float32.

        Raises:
            InputError: a file was damaged or removed since `fill`.
        """
        flat = np.empty((len(numbers), self._width), np.float32)
        for row, number in zip(flat, np.asarray(numbers), strict=True):
            start = int(number) // self._range * self._range
            part = (start, min(start + self._range, self._num))
            row[:] = self._open(part)[int(number) - start].view(self._dtype)
        ends = np.cumsum([math.prod(shape) for shape in self._shapes.values()])
        parts = np.split(flat, ends[:-1], axis=1)
        return {
            name: part.reshape(len(numbers), *shape)
            for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)
        }

    def _begun(self) -> bool:
        """Return whether the folder is of these features, and refuse one of something else."""
        what = f"config.prompts.cache={self.folder}"
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{what} is a file; name a folder")
        if resumable.compare(self.folder / SETTINGS_FILE, self._settings, what):
            return True
        # A name with a dot in front is of a file that a kill left half-written.
        if resumable.foreign(self.folder, lambda name: name.startswith(".")):
            raise InputError(f"{what} holds other files; name a new folder")
        return False

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

    def _is_whole(self, part: Range) -> bool:
        # All of it is read, at over 1 GB/s: a wrong bit would be trained on without a word.
        shape = (part[1] - part[0], self._width * self._dtype.itemsize)
        try:
            return self._map(part, check=True).shape == shape
        except InputError:
            return False

    def _map(self, part: Range, check: bool = False) -> np.ndarray:
        try:
            return archives.map_npy(self._store.paths[part], check)
        except InputError as error:
            raise InputError(f"{error}; start the run again, which makes it anew") from error

    def _save(self, part: Range, found: Features) -> None:
        rows = [np.asarray(found[name], np.float32) for name in self._shapes]
        flat = np.concatenate([x.reshape(len(x), -1) for x in rows], axis=1).astype(self._dtype)
        with files.writing(self._store.paths[part]) as file:
            # As bytes: NumPy's format does not know bfloat16.
            archives.write_npy(file, flat.view(np.uint8))
