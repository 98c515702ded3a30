"""Prompt lists of the text-to-image benchmarks, as their authors publish them.

GenEval's evaluation_metadata.jsonl, HPS v2's JSON file for each style, T2IBenchmark's CSV of 30,000
COCO captions, and plain text with a prompt on each line.
"""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dimo_jax import files
from dimo_jax.data import prompts as prompt_lists
from dimo_jax.errors import InputError

GENEVAL_TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
HPS_STYLES = ("anime", "concept-art", "paintings", "photo")
_SHOWN = 60  # characters of a line in a message


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt of a list.

    Attributes:
        text: what the images are made for.
        metadata: GenEval's line, {"style": ..., "index": ...} of HPS v2, {"image_id": ...} of
            COCO; {} of plain text.
    """

    text: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read(layout: str, path: Path) -> list[Prompt]:
    """The prompts of a list, in its order, which their random numbers go by.

    Args:
        layout: a key of READERS.
        path: the file; for "hpsv2" also the folder with the four styles' files.

    Raises:
        InputError: an unknown layout, or a list that cannot be read: the line is named.
    """
    if layout not in READERS:
        raise InputError(f"there is no prompt list {layout!r}; there are {', '.join(READERS)}")
    try:
        prompts = list(READERS[layout](path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}; save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if not prompts:
        raise InputError(f"{path} has no prompts; give the benchmark's list")
    return prompts


def asked(layout: str | None, path: str | None) -> list[Prompt] | None:
    """The prompts that --prompts and --metadata name; None without the first.

    Args:
        layout: as for `read`.
        path: likewise.

    Raises:
        InputError: as `read`; there is no path.
    """
    if layout is None:
        return None
    if not path:
        raise InputError(f"--prompts={layout} needs --metadata, the list of its prompts")
    return read(layout, files.local(path))


def _geneval(path: Path) -> Iterator[Prompt]:
    for where, found in json_lines(path):
        tag, text = found.get("tag"), found.get("prompt")
        if tag not in GENEVAL_TAGS or not isinstance(text, str) or not text.strip():
            raise InputError(
                f"{where} has the prompt {text!r} and the tag {tag!r}; expected a text, and one of "
                f"{', '.join(GENEVAL_TAGS)}"
            )
        yield Prompt(text, found)


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a .jsonl file, each with its place in words; empty lines are left out.

    Raises:
        InputError: a line is not a JSON object.
    """
    for where, found in prompt_lists.json_lines(path):
        if not isinstance(found, dict):
            raise InputError(f"{where} is no JSON object: {str(found)[:_SHOWN]}")
        yield where, found


def _hps(path: Path) -> Iterator[Prompt]:
    # A folder of theirs has drawbench.json beside the four styles.
    files = [path / f"{style}.json" for style in HPS_STYLES] if path.is_dir() else [path]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)}; give HPS v2's benchmark folder")
    for file in files:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            if isinstance(error, UnicodeDecodeError):
                raise
            raise InputError(f"{file} is not JSON: {error}") from error
        if not isinstance(found, list):
            raise InputError(f"{file} is no list of prompts, but a {type(found).__name__}")
        for index, text in enumerate(found):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{file}: prompt {index} is {text!r}, expected a text")
            yield Prompt(text, {"style": file.stem, "index": index})


def _coco(path: Path) -> Iterator[Prompt]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            fields = reader.fieldnames or []
            if not {"image_id", "text"} <= set(fields):
                raise InputError(f"{path} has the columns {fields}, expected image_id and text")
            for row in reader:
                text, image = row["text"], row["image_id"]
                if not text or not text.strip() or not image:
                    raise InputError(f"{path}, line {reader.line_num}, has no text or no image_id")
                yield Prompt(text, {"image_id": image})
        except csv.Error as error:
            raise InputError(f"{path}, after line {reader.line_num}, is no CSV: {error}") from error


def _plain(path: Path) -> Iterator[Prompt]:
    yield from (Prompt(line.strip()) for _, line in prompt_lists.lines(path) if line.strip())


READERS: Mapping[str, Callable[[Path], Iterable[Prompt]]] = {
    "geneval": _geneval,
    "hpsv2": _hps,
    "coco": _coco,
    "plain": _plain,
}
