"""Tokens in ranges on disk, which at the end become a tokens folder: a kill costs one range.

While they are made they lie in <output>.parts/: a shard and, written after it, what is known of it.
Axes: N pictures of a range.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from dimo_jax.common import files, readers, resumable
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.progress import Progress
from dimo_jax.common.resumable import SETTINGS_FILE, Range
from dimo_jax.common.shown import listed, quoted, shown
from dimo_jax.data import token_files
from dimo_jax.data.pictures import PictureSource
from dimo_jax.data.token_sets import Facts
from dimo_jax.encoding.encoder import Encoded, Encoder
from dimo_jax.parallel import distributed, locks

MOST_SHARDS = 256  # a reader holds one file open for each
LEAST_PICTURES = 256  # of a shard
MOST_SKIPPED = 0.01  # of all pictures
RECORD_BYTES = 128  # about what an example takes beside its tokens and caption
BLOCK_BYTES = 1 << 16  # of array_record: it fills up the last one, and adds one
_OWN = re.compile(r"settings\.json|\d{9,}\.(json|array_record)")
_LISTED = 3
Skipped = tuple[str, str]  # name of a picture, and why it cannot be used


def shard_size(num: int) -> int:
    """Return the pictures of a shard, by those of the set."""
    return max(LEAST_PICTURES, math.ceil(num / MOST_SHARDS))


def folder_of(output: AnyPath) -> AnyPath:
    """Return where the ranges of an output lie until they are joined."""
    return output.with_name(f"{output.name}.parts")


def remove(output: AnyPath) -> None:
    """Remove the ranges of an output that is there, unless other files lie among them."""
    folder = folder_of(output)
    if folder.is_dir() and _foreign(output) is None:
        files.remove_folder(folder)


def _foreign(output: AnyPath) -> str | None:
    return resumable.foreign(folder_of(output), lambda name: bool(_OWN.fullmatch(name)))


class TokenRanges:
    """The ranges of one output.

    Args:
        output: the tokens folder to come.
        facts: of it.
        source: the pictures.
        size: pictures of a range.

    Raises:
        InputError: its ranges would lie among other files, or are of other pictures or settings.
    """

    def __init__(self, output: AnyPath, facts: Facts, source: PictureSource, size: int):
        self._output, self._facts, self._source = output, facts, source
        self._folder = folder_of(output)
        self._settings = {**dataclasses.asdict(facts), "shard_size": size}
        parts = resumable.ranges(source.num, size)
        paths = {part: self._folder / f"{part[0]:09d}.json" for part in parts}
        self._store = resumable.Store(paths, "pictures", self._is_whole)
        self._skipped: dict[Range, list[Skipped]] = {}
        if found := _foreign(output):
            raise InputError(
                f"{self._folder} holds {found}, and would be removed at the end; name another "
                "--output"
            )
        # What stopped before its first range was there binds nobody.
        if any(path.exists() for path in paths.values()):
            begun = readers.json_object(self._folder / SETTINGS_FILE)
            refuse_other(f"{self._folder} holds tokens", begun, self._settings, self._folder)

    def check_space(self) -> str:
        """Return how much the disk needs, in a sentence.

        Raises:
            InputError: there is less room than that.
        """
        tokens = self._facts.views * self._facts.length * self._facts.dtype.itemsize
        size = sum(
            BLOCK_BYTES * (1 + math.ceil((stop - start) * (tokens + RECORD_BYTES) / BLOCK_BYTES))
            for start, stop in self._store.paths
        )
        text = f"tokens of {self._source.num:,} pictures take {_bytes(size)} in {self._output}"
        free = files.free_bytes(self._output)
        if free is None:
            return text
        there = 0
        if self._folder.is_dir():
            there = sum(x.stat().st_size for x in self._folder.iterdir())
        needed = 2 * size - there  # while shards become the folder, both are there
        if needed > free:
            raise InputError(
                f"{text}, and as much again until they are all there, but {_bytes(free)} are free; "
                "give an --output on a larger disk"
            )
        return f"{text}, and as much again until they are all there ({_bytes(free)} free)"

    def left(self) -> int:
        """Return how many pictures of this process's share are not encoded."""
        mine = self._store.share((jax.process_index(), jax.process_count()))
        return sum(part[1] - part[0] for part in mine if not self._is_whole(part))

    def fill(self, encoder: Encoder, progress: Progress) -> None:
        """Encode what is missing; every process of a run calls it.

        Raises:
            InputError: too many pictures cannot be used; of the others, what is done is kept.
        """

        def made(left: list[Range]) -> Iterator[int]:
            batches: list[Encoded] = []
            for batch in encoder.run(left):
                batches.append(batch)
                self._skip(batch.part, self._faults(batch))
                if batch.stop == batch.part[1]:
                    self._save(batch.part, batches)
                    batches = []
                yield batch.stop - batch.start

        if distributed.is_lead():
            resumable.record(self._folder / SETTINGS_FILE, self._settings)
        self._store.fill(made, progress, (jax.process_index(), jax.process_count()))
        paths = self._store.paths.values()
        locks.check_shared("encoded", paths, self._folder, "--output")

    def join(self) -> tuple[int, list[Skipped]]:
        """Make the tokens folder of all ranges, by process 0; every process calls it.

        Returns:
            How many examples it has, and the pictures that it has not.

        Raises:
            InputError: too many pictures cannot be used, or the folder cannot be written.
        """
        self._skipped, shards = {}, []
        for part in self._store.paths:
            entry = self._entry(part)
            self._skip(part, entry["skipped"])
            if entry["num"]:
                shards.append((entry["num"], self._shard(part)))
        skipped = [(name, why) for some in self._skipped.values() for name, why in some]
        # No process may stop for want of what the first has removed.
        distributed.barrier("counted")
        if distributed.is_lead():
            token_files.write(self._output, self._facts, shards, skipped)
            remove(self._output)
        distributed.barrier("joined")
        return sum(num for num, _ in shards), skipped

    def _shard(self, part: Range) -> AnyPath:
        return self._store.paths[part].with_suffix(".array_record")

    def _faults(self, batch: Encoded) -> list[Skipped]:
        numbered = enumerate(batch.pictures, batch.start)
        return [(self._source.name(i), x.fault) for i, x in numbered if x.fault is not None]

    def _skip(self, part: Range, some: list[Any]) -> None:
        """Count pictures of a range that cannot be used, and refuse too many."""
        self._skipped.setdefault(part, []).extend((name, why) for name, why in some)
        num = sum(map(len, self._skipped.values()))
        if num <= MOST_SKIPPED * self._source.num:
            return
        # They may be there after a repair: the same command then makes these ranges again.
        for other, found in self._skipped.items():
            if found:
                self._store.paths[other].unlink(missing_ok=True)
        (_, first), *others = [x for found in self._skipped.values() for x in found]
        names = f"; then {listed([shown(name) for name, _ in others])}" if others else ""
        raise InputError(
            f"{num} of {self._source.num} pictures cannot be used, more than {MOST_SKIPPED:.0%}; "
            f"the first: {first}{names}; with these repaired the same command goes on"
        )

    def _save(self, part: Range, batches: list[Encoded]) -> None:
        pictures = [picture for batch in batches for picture in batch.pictures]
        used = [i for i, picture in enumerate(pictures) if picture.fault is None]
        tokens = np.concatenate([batch.tokens for batch in batches])
        with_labels, with_texts = (self._facts.condition == x for x in ("label", "text"))
        data = token_files.shard(
            self._facts,
            tokens[np.array(used, int)],
            [self._source.name(part[0] + i) for i in used],
            labels=[pictures[i].label for i in used] if with_labels else [],
            texts=[pictures[i].text for i in used] if with_texts else [],
        )
        files.write_file(self._shard(part), data)
        skipped = self._skipped.get(part, [])
        entry = {"num": len(used), "sha256": _digest(data), "skipped": skipped}
        files.write_file(self._store.paths[part], json.dumps(entry).encode())

    def _entry(self, part: Range) -> dict[str, Any]:
        place = self._store.paths[part]
        found = readers.json_object(place)
        with readers.well_typed(str(place)):
            if type(found["num"]) is not int or not isinstance(found["skipped"], list):
                raise ValueError("num or skipped")
        return found

    def _is_whole(self, part: Range) -> bool:
        try:
            entry = self._entry(part)
            whole = entry["sha256"] == _digest(self._shard(part).read_bytes())
        except (InputError, OSError, KeyError):
            return False
        if whole:
            self._skipped.pop(part, None)
            self._skip(part, entry["skipped"])
        return whole


def refuse_other(
    what: str, found: Mapping[str, Any], wanted: Mapping[str, Any], place: AnyPath
) -> None:
    """Refuse to go on with, or to replace, what was encoded otherwise.

    Args:
        what: "FOLDER holds tokens", for the message.
        found: facts of it, as a file has them.
        wanted: facts of this command.
        place: what may be removed instead.

    Raises:
        InputError: they differ, with both named.
    """
    wanted = json.loads(resumable.as_text(wanted))
    there, here = found.get("tokenizer"), wanted["tokenizer"]
    if there != here:
        raise InputError(
            f"{what} of the tokenizer {_tokenizer(there)}, and --tokenizer is {_tokenizer(here)}; "
            f"give that one, or another --output, or remove {place}"
        )
    old, new = (
        {k: v for k, v in {**x, **x["settings"]}.items() if k not in ("settings", "source")}
        for x in ({"settings": {}, **found}, wanted)
    )
    changed = [
        f"{name} was {quoted(old.get(name))} and is {quoted(new[name])}"
        for name in new
        if old.get(name) != new[name]
    ]
    if changed:
        raise InputError(
            f"{what} of other settings: {', '.join(changed)}; give those again, or another "
            f"--output, or remove {place}"
        )


def _tokenizer(facts: Any) -> str:
    with contextlib.suppress(TypeError, KeyError):
        return f"{shown(facts['config']['name'])} with the hash {shown(facts['hash'])[:12]}..."
    return quoted(facts)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _bytes(num: int) -> str:
    return f"{num / 1e9:.3g} GB" if num >= 1e9 else f"{num / 1e6:.3g} MB"
