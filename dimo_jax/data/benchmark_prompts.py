"""Prompt lists of the text-to-image benchmarks, as their authors publish them.

GenEval's evaluation_metadata.jsonl, HPS v2's JSON file for each style, T2IBenchmark's CSV of 30,000
COCO captions, and any list of texts.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dimo_jax.common import files, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.data import prompt_files

GENEVAL_TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
HPS_STYLES = ("anime", "concept-art", "paintings", "photo")
PLAIN = "plain"


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


class Requested(NamedTuple):
    """The prompts that a command was given.

    Attributes:
        layout: of the folder that their images fill, a key of READERS or PLAIN.
        prompts: in the order of the list, which their random numbers go by.
        note: how many of what, in words.
    """

    layout: str
    prompts: list[Prompt]
    note: str


def read(layout: str, path: Path) -> list[Prompt]:
    """Return the prompts of a benchmark's list, in its order.

    Args:
        layout: a key of READERS.
        path: the file; for "hpsv2" also the folder with the four styles' files.

    Raises:
        InputError: a list that cannot be read: the line is named.
    """
    prompts = list(READERS[layout](path))
    if not prompts:
        raise InputError(f"{path} has no prompts; give the benchmark's list")
    return prompts


def requested(name: str | None, metadata: str | None, field: str | None) -> Requested | None:
    """Return the prompts that --prompts, --metadata and --prompt_field name.

    None without the first.

    Args:
        name: a key of READERS, whose list `metadata` is; or a list itself, as for
            prompt_files.Texts; or PLAIN, with such a list in `metadata`.
        metadata: path of the list.
        field: as for prompt_files.Texts.

    Raises:
        InputError: as `read` and prompt_files.Texts; a flag is missing or has no use.
    """
    if not name:
        given = "metadata" if metadata else "prompt_field" if field else None
        if given:
            raise InputError(f"--{given} goes with --prompts; give that too")
        return None
    if name not in (*READERS, PLAIN):
        if metadata:
            raise InputError(
                f"--metadata is the list of a benchmark ({', '.join(READERS)}), and "
                f"--prompts={name} is none; leave one of the two away"
            )
        if not name.startswith(prompt_files.DATASET) and not files.local(name).exists():
            raise InputError(
                f"--prompts={name} is no file, and none of the benchmarks {', '.join(READERS)}; "
                "give a list of prompts, or one of these with --metadata"
            )
        metadata = name
    elif not metadata:
        raise InputError(f"--prompts={name} needs --metadata, the list of its prompts")
    if name in READERS:
        if field:
            raise InputError(f"--prompt_field is for other lists than that of {name}")
        found = read(name, files.local(metadata))
        return Requested(name, found, f"{len(found):,} prompts of {metadata}")
    texts = prompt_files.Texts(metadata, field or "", "--prompt_field")
    found = [Prompt(text.strip()) for text in texts if text.strip()]
    if not found:
        raise InputError(f"{metadata} has no prompts; give a list with at least one")
    note = f"{len(found):,} prompts of {prompt_files.describe(metadata, texts.fields)}"
    return Requested(PLAIN, found, note)


def _geneval(path: Path) -> Iterator[Prompt]:
    for where, found in json_lines(path):
        tag, text = found.get("tag"), found.get("prompt")
        if tag not in GENEVAL_TAGS or not isinstance(text, str) or not text.strip():
            raise InputError(
                f"{where} has the prompt '{shown(text)}' and the tag '{shown(tag)}'; expected a "
                "text, and one of "
                f"{', '.join(GENEVAL_TAGS)}"
            )
        yield Prompt(text, found)


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a .jsonl file, each with its place in words; empty lines are left out.

    Raises:
        InputError: a line is not a JSON object.
    """
    for where, found in prompt_files.json_lines(path):
        yield where, readers.as_object(found, where)


def _hps(path: Path) -> Iterator[Prompt]:
    # A folder of theirs has drawbench.json beside the four styles.
    files = [path / f"{style}.json" for style in HPS_STYLES] if path.is_dir() else [path]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)}; give HPS v2's benchmark folder")
    for file in files:
        found = readers.json_value(file)
        if not isinstance(found, list):
            raise InputError(f"{file} is no list of prompts, but a {type(found).__name__}")
        for index, text in enumerate(found):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{file}: prompt {index} is '{shown(text)}', expected a text")
            yield Prompt(text, {"style": file.stem, "index": index})


def _coco(path: Path) -> Iterator[Prompt]:
    for where, row in prompt_files.table(path):
        if not {"image_id", "text"} <= set(row):
            names = ", ".join(map(shown, row))
            raise InputError(f"{path} has the columns {names}, expected image_id and text")
        text, image = row["text"], row["image_id"]
        if not text or not text.strip() or not image:
            raise InputError(f"{where} has no text or no image_id")
        yield Prompt(text, {"image_id": image})


READERS: Mapping[str, Callable[[Path], Iterable[Prompt]]] = {
    "geneval": _geneval,
    "hpsv2": _hps,
    "coco": _coco,
}
