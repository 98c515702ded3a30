"""Pictures of a folder: a sub-folder for each class, a metadata.jsonl, or nothing beside them.

Folders come from strangers: no name in them leads out of the folder, and all that is wrong with
names, labels and captions is said when it is opened.
"""

import hashlib
import os
import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dimo_jax.common import picture_folder, pictures
from dimo_jax.common.errors import InputError, about
from dimo_jax.common.picture_folder import METADATA
from dimo_jax.common.shown import listed, quoted, shown
from dimo_jax.data import prompt_files, token_files
from dimo_jax.data.pictures import FIELD_FLAG, PictureSource, first_text

FILE_NAME = "file_name"
LABEL = "label"
MAX_CLASSES = 1 << 16
_LINES_AT_ONCE = 1000  # between two reports of progress


class Folder(PictureSource):
    """Pictures in files, in the order of their names or of the lines of metadata.jsonl.

    Args:
        folder: with a metadata.jsonl; else, with sub-folders, of which each is a class, in the
            order of their names; else with pictures alone.
        condition: of CONDITIONS; empty for what there is, a label rather than a text. With "none"
            a folder without metadata.jsonl may have any form.
        field: of metadata.jsonl that holds it; empty for "label", or the first of
            prompt_files.FIELDS.
        follow_links: those that lead out of the folder.
        progress: called while a long metadata.jsonl is read, as Progress.update.

    Raises:
        InputError: it has no pictures, or not what `condition` wants; a class is empty; a line of
            metadata.jsonl is not as expected.
    """

    def __init__(
        self,
        folder: Path,
        condition: str = "",
        field: str = "",
        follow_links: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ):
        found, notes = picture_folder.find(folder, True, follow_links)
        found.sort()
        if (folder / METADATA).exists():
            rows = _Rows(folder, found, condition, field, progress)
            self._names, self._texts, condition = rows.names, rows.texts, rows.condition
            labels, class_names = _numbered(rows.labels, folder)
            notes += _left_out(found, rows.names, labels, class_names)
        else:
            if condition == "text" or field:
                raise InputError(f"{folder} has no {METADATA} with captions or labels; write one")
            self._names, self._texts = found, []
            class_names = [] if condition == "none" else _classes(folder, found)
            if condition == "label" and not class_names:
                raise InputError(f"{folder} has no sub-folders; put each class in one of its own")
            condition = "label" if class_names else "none"
            numbers = {name: i for i, name in enumerate(class_names)}
            labels = [numbers[_class_of(name)] for name in found] if class_names else []
        self._root, self._labels = folder, np.array(labels, np.int32)
        digest = hashlib.sha256()
        for part in (self._names, class_names, self._texts):
            digest.update(b"\0" + "\0".join(part).encode(errors="surrogateescape"))
        digest.update(self._labels.tobytes())
        num, version = len(self._names), digest.hexdigest()
        super().__init__(str(folder), num, condition, class_names, version)
        self.notes += notes

    def name(self, index: int) -> str:
        """Return the path of a picture in the folder."""
        return self._names[index]

    def read(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Read and decode a file."""
        return np.asarray(self._decoded(index).image)

    def kinds(self, index: int) -> tuple[str, ...]:
        """Look at a file."""
        return self._decoded(index).kinds

    def _decoded(self, index: int) -> pictures.Opened:
        path = self._root / self._names[index]
        return pictures.decode(pictures.read(path), str(path), rgb=True, upright=True)

    def stamp(self, index: int) -> str:
        """Return the size and the time of a file."""
        found = os.stat(self._root / self._names[index])
        return f"{found.st_size} {found.st_mtime_ns}"

    def label(self, index: int) -> int:
        """Return the class of a picture."""
        return int(self._labels[index])

    def text(self, index: int) -> str:
        """Return the caption of a picture."""
        return self._texts[index]


def _class_of(name: str) -> str:
    return name.partition(os.sep)[0]


def _classes(folder: Path, found: Sequence[str]) -> list[str]:
    """Return the names of the classes; none where there are no sub-folders."""
    with os.scandir(folder) as entries:
        below = sorted(x.name for x in entries if x.is_dir() and not x.name.startswith("."))
    if not below:
        return []
    _check_classes(below, folder)
    depths = [name.count(os.sep) for name in found]
    if 0 in depths:
        raise InputError(
            f"{folder} has pictures ({found[depths.index(0)]}) beside sub-folders, which are its "
            "classes; move them into one, or give --condition=none"
        )
    deep = next((name for name, depth in zip(found, depths, strict=True) if depth > 1), None)
    if deep is not None:
        raise InputError(
            f"{folder} has pictures deeper than in its sub-folders, which are its classes "
            f"({deep}); give the folder whose sub-folders are classes, e.g. "
            f"{folder / _class_of(deep)}, or --condition=none"
        )
    if empty := sorted(set(below) - {_class_of(name) for name in found}):
        raise InputError(
            f"classes of {folder} have no picture: {listed(empty)}; fill or remove these folders"
        )
    return below


def _check_classes(names: Sequence[str], where: object) -> None:
    if len(names) > MAX_CLASSES:
        raise InputError(f"{where} has {len(names):,} classes, more than {MAX_CLASSES:,}")
    with about(str(where)):
        token_files.check_class_names(names)


class _Rows:
    """The lines of metadata.jsonl, checked."""

    def __init__(
        self,
        folder: Path,
        found: Sequence[str],
        condition: str,
        field: str,
        progress: Callable[[int, int, str], None] | None,
    ):
        self.names: list[str] = []
        self.labels: list[Any] = []
        self.texts: list[str] = []
        self.condition, self._field = condition, field
        known, lines = set(found), {}
        path = folder / METADATA
        if not path.is_file():
            raise InputError(f"{path} is no file, expected a line of JSON for each picture")
        for where, record in prompt_files.json_lines(path):
            if not isinstance(record, dict):
                raise InputError(f"{where} is no object: {quoted(record)}")
            name = _file_name(record, where, folder)
            if name not in known:
                raise InputError(
                    f"{where} names {shown(name)}, which is no picture in {folder}; remove the "
                    "line, or bring the file back"
                )
            if name in lines:
                raise InputError(f"{where} names {shown(name)}, as does {lines[name]}; remove one")
            lines[name] = where
            if progress and len(lines) % _LINES_AT_ONCE == 0:
                progress(len(lines), len(found), f"lines of {METADATA} read")
            if not self.names:
                self.condition, self._field = _chosen(record, condition, field, where)
            self.names.append(name)
            self._take(record, where)
        if not self.names:
            raise InputError(f"{path} has no lines, expected one for each picture")

    def _take(self, record: dict[str, Any], where: str) -> None:
        if self.condition == "none":
            return
        if self._field.partition("/")[0] not in record:
            raise prompt_files.lacks(where, self._field, record, FIELD_FLAG)
        if self.condition == "text":
            found = prompt_files.texts_at(record, self._field, where, FIELD_FLAG)
            self.texts.append(first_text(found, where))
            return
        value = record[self._field]
        first = type(self.labels[0]) if self.labels else type(value)
        if type(value) not in (int, str) or type(value) is not first:
            kind = {int: "a number", str: "a name"}.get(first, "a name or a whole number")
            raise InputError(f"{where} has the label {quoted(value)}, expected {kind} in each line")
        if isinstance(value, int) and not 0 <= value < MAX_CLASSES:
            raise InputError(f"{where} has the label {value}, expected 0 to {MAX_CLASSES - 1}")
        self.labels.append(value)


def _file_name(record: dict[str, Any], where: str, folder: Path) -> str:
    """Return the path of a picture relative to the folder, as the folder lists it."""
    name = record.get(FILE_NAME)
    if not isinstance(name, str) or not name:
        raise InputError(f"{where} has no {FILE_NAME}, expected the path of a picture")
    if name.startswith(("/", "\\")) or ".." in name.split("/") or "\0" in name:
        raise InputError(
            f"{where} names {shown(name)}, expected a path inside {folder} without .. in it"
        )
    return posixpath.normpath(name)


def _chosen(record: dict[str, Any], condition: str, field: str, where: str) -> tuple[str, str]:
    """Return the condition and the field that holds it, from the first line."""
    text = prompt_files.field_of_texts(record)
    if condition == "none":
        return "none", ""
    if field and not condition:
        is_label = field == LABEL or isinstance(record.get(field), int)
        return ("label" if is_label else "text"), field
    if condition in ("", "label") and (field or LABEL in record):
        return "label", field or LABEL
    if condition in ("", "text") and (field or text is not None):
        return "text", field or str(text)
    if condition:
        wanted = LABEL if condition == "label" else f"{', '.join(prompt_files.FIELDS)}"
        raise prompt_files.lacks(where, wanted, record, FIELD_FLAG)
    return "none", ""


def _numbered(labels: Sequence[Any], folder: Path) -> tuple[list[int], list[str]]:
    """Return labels as numbers, and the names of their classes; numbers are their own names."""
    if not labels or isinstance(labels[0], int):
        return list(labels), [str(i) for i in range(max(labels, default=-1) + 1)]
    names = sorted(set(labels))
    _check_classes(names, folder / METADATA)
    numbers = {name: i for i, name in enumerate(names)}
    return [numbers[x] for x in labels], names


def _left_out(
    found: Sequence[str], named: Sequence[str], labels: Sequence[int], classes: Sequence[str]
) -> list[str]:
    """Say which pictures have no line, and which classes no picture."""
    notes = []
    if left := sorted(set(found) - set(named)):
        notes.append(f"pictures that {METADATA} does not name ({len(left)}): {listed(left)}")
    used = set(labels)
    if empty := [name for i, name in enumerate(classes) if i not in used]:
        notes.append(f"classes without a picture ({len(empty)}): {listed(empty)}")
    return notes
