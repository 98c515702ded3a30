"""The one reader of texts from files: plain text, JSON lines, JSON, tables, tensorflow-datasets."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

from dimo_jax.common import files, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.data import splits

# Where a prompt is looked for in a record when no field is named, in this order and in any case.
FIELDS = ("prompt", "caption", "text")
DATASET = splits.DATASET
# Where tensorflow-datasets lie if no place is named.
DATA_DIR = "~/tensorflow_datasets"
_SHOWN = 60  # characters of a line in a message
_ROWS = 10_000  # of a parquet file in memory at a time
_MAX_LINE_BYTES = 1 << 24  # of a prompt with whatever stands beside it in its record


class Texts:
    """The texts of a place, one after the other, blank ones and repeated ones too.

    Args:
        where: a .txt with a text on each line; a .jsonl with an object or a string on each line; a
            .json with a list of these; a .csv, .tsv or .parquet; a folder of such files, which are
            read in the order of their names; or tfds:NAME:SPLIT.
        field: where in a record the text is, "captions/text" for one inside another; empty for the
            first of FIELDS.
        flag: that names the field, for messages.
        data_dir: where tensorflow-datasets lie.

    Attributes:
        fields: those that texts were found in so far, in a dict for its order; none of plain text.

    Raises:
        InputError: it is no such place. While it is read: it cannot be, is damaged (the file and
            the line are named), is of another kind than its name says, or lacks the field.
    """

    def __init__(
        self,
        where: str,
        field: str = "",
        flag: str = "--config.prompts.field",
        data_dir: str | os.PathLike = DATA_DIR,
    ):
        self._where, self._field, self._flag, self._data_dir = where, field, flag, data_dir
        self.fields: dict[str, None] = {}
        self._files = [] if where.startswith(DATASET) else _files_of(where)

    def __iter__(self) -> Iterator[str]:
        """Read them."""
        if self._where.startswith(DATASET):
            yield from self._of_split()
        for path in self._files:
            ending = path.suffix.lower()
            # Of a table of many columns the one alone.
            columns = _parquet(path, self._column) if ending == ".parquet" else None
            for where, record in columns or READERS[ending](path):
                yield from self._of_record(record, where)

    def _column(self, names: Sequence[str], where: str) -> str:
        record = dict.fromkeys(names)
        column = (self._field or self._first_field(record, where)).partition("/")[0]
        if column not in record:
            raise lacks(where, column, record, self._flag)
        return column

    def _of_record(self, record: Any, where: str) -> Iterator[str]:
        if isinstance(record, str):
            yield record
        elif isinstance(record, Mapping):
            field = self._field or self._first_field(record, where)
            self.fields[field] = None
            yield from texts_at(record, field, where, self._flag)
        else:
            raise InputError(f"{where} is neither an object nor a text: {shown(record)[:_SHOWN]}")

    def _of_split(self) -> Iterator[str]:
        split = splits.open_split(*splits.parse(self._where), self._data_dir)
        field = self._field or self._first_field(dict(split.features.items()), self._where)
        self.fields[field] = None
        for index in range(len(split.examples)):
            where = f"{self._where}, example {index},"
            yield from texts_at(split.examples[index], field, where, self._flag)

    def _first_field(self, record: Mapping[str, Any], where: str) -> str:
        found = field_of_texts(record)
        if found is None:
            names = f"{', '.join(FIELDS[:-1])} or {FIELDS[-1]}"
            raise lacks(where, names, record, self._flag)
        return found


def field_of_texts(record: Mapping[str, Any]) -> str | None:
    """Return the first of FIELDS that a record has, in its own spelling."""
    by_name = {str(name).lower(): name for name in reversed(list(record))}
    names = (name if name in record else by_name.get(name) for name in FIELDS)
    return next((name for name in names if name is not None), None)


def lacks(where: str, field: str, record: Mapping[str, Any], flag: str) -> InputError:
    """Say that a record has not the field that a flag names."""
    names = shown(", ".join(map(str, record))) or "nothing"
    return InputError(f"{where} has {names}, but no {field}; name the text's field with {flag}")


def texts_at(value: Any, field: str, where: str, flag: str) -> Iterator[str]:
    """Yield the text, or the texts of a list, at a path of names; nothing counts as a blank one.

    Args:
        value: of a record, or inside it.
        field: names with / between them; empty: the value itself.
        where: the record in words, for messages.
        flag: that names the field.

    Raises:
        InputError: there is no such field, or no text.
    """
    name, _, rest = field.partition("/")
    if isinstance(value, list | tuple | np.ndarray):
        for one in value:
            yield from texts_at(one, field, where, flag)
    elif isinstance(value, Mapping) and name:
        if name not in value:
            raise lacks(where, name, value, flag)
        yield from texts_at(value[name], rest, where, flag)
    elif value is None:
        yield ""
    elif isinstance(value, bytes):
        yield readers.decoded(value, where)
    elif isinstance(value, str) and not name:
        yield value
    else:
        raise InputError(
            f"{where} has '{shown(value)[:_SHOWN]}' where the text was expected, which is no text"
        )


def describe(where: str, fields: Iterable[str]) -> str:
    """'list.csv, field caption'."""
    names = ", ".join(shown(name) for name in fields)
    return f"{where}, field {names}" if names else where


def _files_of(where: str) -> list[Path]:
    path = files.local(where)
    endings = ", ".join(ENDINGS)
    if not path.exists():
        raise InputError(
            f"there is no {path}; give a list of prompts ({endings}), a folder of such files, or "
            "tfds:NAME:SPLIT"
        )
    found = [path]
    if path.is_dir():
        found = sorted(x for x in path.iterdir() if x.suffix.lower() in ENDINGS)
    if not found or found[0].suffix.lower() not in ENDINGS:
        raise InputError(
            f"{path} is no list of prompts: its name was expected to end in {endings}, or to be a "
            "folder with such files"
        )
    return found


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file with their numbers, from 1 on.

    Raises:
        InputError: the file cannot be read, or a line is no UTF-8 or too long; it is named.
    """
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(_MAX_LINE_BYTES + 1):
                number += 1
                where = f"{path}, line {number},"
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                    _refuse_others(line, path)
                if len(line) > _MAX_LINE_BYTES:
                    raise InputError(
                        f"{where} has more than {_MAX_LINE_BYTES:,} bytes; give a prompt on each"
                    )
                try:
                    yield number, line.decode()
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{where} is not UTF-8 (byte 0x{line[error.start]:02x} at {error.start}); "
                        "save it as UTF-8"
                    ) from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _refuse_others(head: bytes, path: Path) -> None:
    """Refuse what a download gone wrong begins with; a prompt may begin with "<"."""
    page = head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html"))
    if what := readers.recognised(head[:64], *(() if page else (b"<",))):
        raise InputError(f"{path} is {what}")


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the values of a .jsonl file, each with its place in words; empty lines are left out.

    Raises:
        InputError: as `lines`, or a line is not JSON.
    """
    for number, line in lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number},"
        try:
            yield where, readers.parse_json(line, where)
        except InputError as error:
            raise InputError(f"{error}: {shown(line.strip()[:_SHOWN])}") from error


def table(path: Path, delimiter: str = ",") -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield the rows of a table of text with a line of column names, each with its place in words.

    Raises:
        InputError: as `lines`, or it is no such table.
    """
    rows = csv.DictReader((line for _, line in lines(path)), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            where = f"{path}, line {rows.line_num},"
            if None in row:
                raise InputError(
                    f"{where} has more cells than the first line has columns; put a text with "
                    "the separator in it in quotes"
                )
            yield where, row
    except csv.Error as error:
        kind = "CSV" if delimiter == "," else "TSV"
        raise InputError(f"{path}, after line {rows.line_num}, is no {kind}: {error}") from error


def _tab_separated(path: Path) -> Iterator[tuple[str, Any]]:
    return table(path, "\t")


def _text(path: Path) -> Iterator[tuple[str, str]]:
    begun = False
    for number, line in lines(path):
        if not begun and line.strip():
            begun = True
            if ending := _really(line.strip()):
                raise InputError(
                    f"{path} holds JSON, not a prompt on each line; rename it to "
                    f"{path.with_suffix(ending).name}"
                )
        yield f"{path}, line {number},", line


def _really(line: str) -> str | None:
    """Return the ending that a file should have whose first line is obviously JSON."""
    if line in ("{", "["):
        return ".json"
    if line[0] not in "{[":
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(found, list) and found and all(isinstance(x, str | dict) for x in found)
    return ".json" if whole else ".jsonl" if isinstance(found, dict) else None


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    found = readers.json_value(path)
    if not isinstance(found, list):
        yield str(path), found
        return
    for index, record in enumerate(found):
        yield f"{path}, record {index},", record


def _parquet(
    path: Path, column_of: Callable[[Sequence[str], str], str]
) -> Iterator[tuple[str, Any]]:
    try:
        with parquet.ParquetFile(path) as file:
            row, column = 0, column_of(file.schema_arrow.names, str(path))
            for batch in file.iter_batches(_ROWS, columns=[column]):
                for record in batch.to_pylist():
                    yield f"{path}, row {row},", record
                    row += 1
    except InputError:
        raise
    # Beside its own errors pyarrow raises OSError, ValueError, MemoryError, NotImplementedError ...
    except Exception as error:
        what = f"damaged or no parquet file ({shown(error)}); copy it again"
        with open(path, "rb") as file:
            what = readers.recognised(file.read(64)) or what
        raise InputError(f"{path} is {what}") from error


# Ending of a file's name -> its records, each with its place in words.
READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".txt": _text,
    ".jsonl": json_lines,
    ".json": _json,
    ".csv": table,
    ".tsv": _tab_separated,
}
ENDINGS = (*READERS, ".parquet")
