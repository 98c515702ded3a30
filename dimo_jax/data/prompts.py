"""Prompts to train on: from text, JSON lines, parquet or tensorflow-datasets, each of them once."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from dimo_jax import files
from dimo_jax.data import splits
from dimo_jax.errors import InputError

# Where a prompt is looked for in a record when no field is named, in this order.
FIELDS = ("prompt", "caption", "text", "TEXT")
_SHOWN = 60  # characters of a line in a message
_ROWS = 10_000  # of a parquet file in memory at a time


@dataclasses.dataclass(frozen=True)
class PromptList:
    """Prompts in the order of their first appearance, no two the same.

    Attributes:
        where: what they were read from.
        texts: without white space at their ends.
        found: how many there were.
        blank: of those, without any text.
        repeated: of those, that had come before.
        sha256: of the texts in their order.
    """

    where: str
    texts: Sequence[str]
    found: int
    blank: int
    repeated: int
    sha256: str

    def describe(self) -> str:
        """'1,200 prompts of list.txt (1,300 read, 20 blank, 80 repeated)'."""
        left = [f"{self.blank:,} blank"] if self.blank else []
        left += [f"{self.repeated:,} repeated"] if self.repeated else []
        more = f" ({', '.join([f'{self.found:,} read', *left])})" if left else ""
        return f"{len(self.texts):,} prompts of {self.where}{more}"


def read(
    where: str, field: str = "", data_dir: str | os.PathLike = "~/tensorflow_datasets"
) -> PromptList:
    """All prompts of a place.

    Args:
        where: a .txt with a prompt on each line, a .jsonl with an object or a string on each line,
            a .parquet, a folder of such files, which are read in the order of their names, or
            tfds:NAME:SPLIT.
        field: where in a record the prompt is, "captions/text" for one inside another; empty for
            the first of FIELDS.
        data_dir: where tensorflow-datasets lie.

    Raises:
        InputError: it is no such place, cannot be read, is damaged (the file and the line are
            named), lacks the field, or has no prompt.
    """
    if where.startswith(splits.DATASET):
        return unique(where, _of_split(where, field, data_dir))
    path = files.local(where)
    if not path.exists():
        raise InputError(
            f"there is no {path}; give a .txt, .jsonl or .parquet of prompts, a folder of such "
            "files, or tfds:NAME:SPLIT"
        )
    several = sorted(x for x in path.iterdir() if x.suffix in READERS) if path.is_dir() else [path]
    wrong = [x for x in several if x.suffix not in READERS]
    if wrong or not several:
        raise InputError(
            f"{path} is no list of prompts: expected {', '.join(READERS)}, or a folder with such "
            "files"
        )
    return unique(where, (text for one in several for text in _of_file(one, field)))


def unique(where: str, found: Iterable[str]) -> PromptList:
    """The list of some texts.

    Args:
        where: they are from.
        found: texts as they came, blank ones and repeated ones too.

    Raises:
        InputError: there is none.
    """
    texts: dict[str, None] = {}
    count = blank = 0
    for text in found:
        count += 1
        text = text.strip()
        if text:
            texts[text] = None
        else:
            blank += 1
    if not texts:
        raise InputError(f"{where} has no prompts; give a list with at least one")
    digest = hashlib.sha256()
    for text in texts:
        # Lone surrogates, which JSON can spell, are no UTF-8.
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    kept = len(texts)
    return PromptList(where, list(texts), count, blank, count - blank - kept, digest.hexdigest())


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, from 1 on.

    Raises:
        InputError: the file cannot be read, or a line is no UTF-8; it is named.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                yield number, line.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, line {number}, is not UTF-8 (byte 0x{error.object[error.start]:02x} at "
            f"{error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a .jsonl file, each with its place in words; empty lines are left out.

    Raises:
        InputError: as `lines`, or a line is not JSON.
    """
    for number, line in lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number},"
        try:
            yield where, json.loads(line)
        except ValueError as error:
            shown = line.strip()[:_SHOWN]
            raise InputError(f"{where} is not JSON ({error}): {shown}") from error


def _of_file(path: Path, field: str) -> Iterator[str]:
    return READERS[path.suffix](path, field)


def _of_text(path: Path, field: str) -> Iterator[str]:
    del field
    return (line for _, line in lines(path))


def _of_json_lines(path: Path, field: str) -> Iterator[str]:
    for where, found in json_lines(path):
        if isinstance(found, str):
            yield found
        elif isinstance(found, Mapping):
            yield from _texts(found, field or _first_field(found, where), where)
        else:
            raise InputError(f"{where} is neither an object nor a text: {str(found)[:_SHOWN]}")


def _of_parquet(path: Path, field: str) -> Iterator[str]:
    try:
        with parquet.ParquetFile(path) as file:
            names = {name: None for name in file.schema_arrow.names}
            field = field or _first_field(names, str(path))
            if field.split("/")[0] not in names:
                raise _lacks(str(path), field, names)
            row = 0
            for batch in file.iter_batches(_ROWS, columns=[field.split("/")[0]]):
                for record in batch.to_pylist():
                    yield from _texts(record, field, f"{path}, row {row},")
                    row += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} is damaged or no parquet file: {error}") from error


def _of_split(where: str, field: str, data_dir: str | os.PathLike) -> Iterator[str]:
    split = splits.open_split(*splits.parse(where), data_dir)
    field = field or _first_field(dict(split.features.items()), where)
    for index in range(len(split.examples)):
        yield from _texts(split.examples[index], field, f"{where}, example {index},")


# Ending of a file's name -> its prompts, given the field's name.
READERS: Mapping[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _of_text,
    ".jsonl": _of_json_lines,
    ".parquet": _of_parquet,
}


def _first_field(record: Mapping[str, Any], where: str) -> str:
    found = next((name for name in FIELDS if name in record), None)
    if found is None:
        raise _lacks(where, f"{', '.join(FIELDS[:-1])} or {FIELDS[-1]}", record)
    return found


def _lacks(where: str, field: str, record: Mapping[str, Any]) -> InputError:
    return InputError(
        f"{where} has {', '.join(map(str, record)) or 'nothing'}, but no {field}; name the "
        "prompt's field with --config.prompts.field"
    )


def _texts(value: Any, field: str, where: str) -> Iterator[str]:
    """The text, or the texts of a list, at a path of names; nothing counts as a blank one."""
    name, _, rest = field.partition("/")
    if isinstance(value, list | tuple | np.ndarray):
        for one in value:
            yield from _texts(one, field, where)
    elif isinstance(value, Mapping) and name:
        if name not in value:
            raise _lacks(where, name, value)
        yield from _texts(value[name], rest, where)
    elif value is None:
        yield ""
    elif isinstance(value, bytes):
        try:
            yield value.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not UTF-8 ({error}); repair it") from error
    elif isinstance(value, str) and not name:
        yield value
    else:
        shown = str(value)[:_SHOWN]
        raise InputError(f"{where} has {shown!r} where the prompt was expected, which is no text")
