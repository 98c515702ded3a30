"""Work on disk in ranges, so that a killed command goes on where it was.

What decides the content is recorded in a JSON file and compared when the work goes on. A range is a
file that appears whole; one that is missing or damaged is made. On a disk that several processes
share each makes every n-th range; waiting for the others, and what becomes of the ranges at the
end, is the caller's.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dimo_jax.common import files, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.progress import Progress
from dimo_jax.common.shown import shown
from dimo_jax.common.temporaries import is_temporary

SETTINGS_FILE = "settings.json"

Range = tuple[int, int]  # [start, stop)


@dataclasses.dataclass(frozen=True)
class Store:
    """The ranges of some work.

    Attributes:
        paths: the file of each range, in order.
        units: what is counted: "images", "prompts".
        is_whole: range -> whether its file is there and as it was written; None: it is there.
        group: neighbouring ranges that one process makes.
    """

    paths: Mapping[Range, AnyPath]
    units: str
    is_whole: Callable[[Range], bool] | None = None
    group: int = 1

    def share(self, process: tuple[int, int]) -> list[Range]:
        """Return the ranges of a process, (index, processes)."""
        index, processes = process
        return [x for i, x in enumerate(self.paths) if i // self.group % processes == index]

    def fill(
        self,
        make: Callable[[list[Range]], Iterator[int]],
        progress: Progress,
        process: tuple[int, int],
    ) -> tuple[int, int]:
        """Make what is missing of a process's share.

        Args:
            make: missing ranges -> how many units were done, whenever some are.
            progress: says how much is there already, and how far it is.
            process: (index, processes).

        Returns:
            Units of this process that were there before, and that are there now.
        """
        whole = self.is_whole or (lambda part: self.paths[part].exists())
        mine = self.share(process)
        left = [part for part in mine if not whole(part)]
        total, missing = (sum(stop - start for start, stop in some) for some in (mine, left))
        before = done = total - missing
        if before:
            progress.note(f"goes on: {before} of {total} {self.units} are there already")
        if damaged := [self.paths[part] for part in left if self.paths[part].exists()]:
            progress.note(f"{len(damaged)} damaged files, {damaged[0]} for one, are made again")
        progress.update(done, total, self.units)
        for some in make(left):
            done += some
            progress.update(done, total, self.units)
        return before, done


def ranges(num: int, size: int) -> list[Range]:
    """Return the ranges of some units, in order."""
    return [(start, min(start + size, num)) for start in range(0, num, size)]


def as_text(settings: Mapping[str, Any]) -> str:
    """Return settings as they are recorded."""
    return json.dumps(settings, sort_keys=True, indent=1, default=dict)


def compare(place: AnyPath, settings: Mapping[str, Any], what: str) -> bool:
    """Return whether settings were recorded at a place, which must be these.

    Raises:
        InputError: others were recorded, for `what` as the message calls it, or it is damaged.
    """
    if not place.exists():
        return False
    found, wanted = readers.json_object(place), json.loads(as_text(settings))
    names = sorted(shown(k) for k in {*found, *wanted} if found.get(k) != wanted.get(k))
    if names:
        raise InputError(
            f"{what} was begun with other settings: {', '.join(names)}; give those of {place} "
            "again to go on, or name a new place"
        )
    return True


def record(place: AnyPath, settings: Mapping[str, Any]) -> None:
    """Write settings."""
    files.write_file(place, as_text(settings).encode())


def foreign(folder: AnyPath, is_own: Callable[[str], bool]) -> str | None:
    """Name what a folder holds that is neither its own nor left by a killed process."""
    names = sorted(x.name for x in folder.iterdir()) if folder.is_dir() else []
    return next((x for x in names if not (is_own(x) or is_temporary(x))), None)
