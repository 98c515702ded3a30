"""The vocabulary of CLIP's tokenizer, as a list of merges, from any file that carries it.

The ids follow from the merges: 256 bytes, the same at the end of a word, the merged pieces in
order, the start and the end of a text. The list is not part of this package; it lies beside
Hugging Face's weights, and the pip package open_clip_torch ships it.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dimo_jax.common import readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown

MERGES_FILE = "merges.txt"
OPENAI_FILE = "bpe_simple_vocab_16e6.txt.gz"
# Ids that are no merges: the bytes twice, start and end.
NUM_OTHER_IDS = 2 * 256 + 2
_HEADER = "#version: 0.2"
START, END = "<|startoftext|>", "<|endoftext|>"
_NAMES = (MERGES_FILE, "tokenizer.json", OPENAI_FILE)
_PACKAGES = ("open_clip", "clip")
_MAX_UNPACKED = 1 << 24  # bytes of OpenAI's list, which has 3.2 million


def byte_characters() -> list[str]:
    """Return the character that is written for each byte, in the order of their ids.

    Printable bytes stand for themselves and come first; the others have the characters from 256 on.

    Source: GPT-2's byte-level encoding, Radford et al., 2019, which CLIP took over.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def tokens(merges: Sequence[str]) -> list[str]:
    """Return every piece of a vocabulary but start and end; its place is its id.

    Args:
        merges: pairs of pieces, each written as "left right".
    """
    characters = byte_characters()
    ends = [f"{character}</w>" for character in characters]
    return [*characters, *ends, *(merge.replace(" ", "", 1) for merge in merges)]


def to_text(merges: Sequence[str]) -> bytes:
    """Merge as the content of a merges.txt."""
    return "\n".join([_HEADER, *merges, ""]).encode()


def from_text(data: bytes) -> list[str]:
    """Return the merges of what `to_text` gave, which a bundle of CLIP carries."""
    return data.decode().split("\n")[1:-1]


def find(folder: Path) -> Path | None:
    """Return a file with a vocabulary.

    In a folder, in tokenizer/ beside it, or in an installed package.

    Args:
        folder: where the weights lie.

    Returns:
        The first there is; None where there is none. Nothing is imported for it.
    """
    places = [folder, folder.parent / "tokenizer"]
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin:
            places.append(Path(spec.origin).parent)
    files = (place / name for place in places for name in _NAMES)
    return next((file for file in files if file.is_file()), None)


def read(path: Path, vocabulary: int) -> list[str]:
    """Return the merges of a file.

    Args:
        path: a merges.txt, a tokenizer.json, OpenAI's bpe_simple_vocab_16e6.txt.gz, or a folder
            with one of them.
        vocabulary: ids that the text tower has.

    Returns:
        vocabulary - NUM_OTHER_IDS merges, each "left right".

    Raises:
        InputError: there is no such file, it is damaged, has another number of merges, or a
            vocabulary in another order lies beside it.
    """
    if path.is_dir():
        found = [path / name for name in _NAMES if (path / name).is_file()]
        if not found:
            raise InputError(f"{path} has no vocabulary; one of {', '.join(_NAMES)} was expected")
        path = found[0]
    merges, wanted = _lines(path), vocabulary - NUM_OTHER_IDS
    # OpenAI's list goes on after the part that CLIP uses.
    if path.name.startswith("bpe_simple_vocab"):
        merges = merges[: max(wanted, 0)]
    if len(merges) != wanted:
        raise InputError(
            f"{path} has {len(merges)} merges, but the text tower has {vocabulary} ids, which are "
            f"{max(wanted, 0)} merges and {NUM_OTHER_IDS} others; give this model's vocabulary"
        )
    for number, merge in enumerate(merges):
        if len(merge.split(" ")) != 2:
            raise InputError(f"{path}: merge {number} is '{shown(merge)}', expected two pieces")
    beside = path.with_name("vocab.json")
    if path.suffix == ".json":
        model = readers.json_object(path)["model"]  # which `merges_in` has looked into
        _compare(path, model.get("vocab"), merges)
    elif beside.is_file():
        _compare(beside, readers.json_object(beside), merges)
    return merges


def merges_in(found: Any, where: str) -> list[str]:
    """Return the merges in a parsed tokenizer.json.

    Args:
        found: plain values.
        where: for messages.

    Raises:
        InputError: it has none.
    """
    try:
        merges = found["model"]["merges"]
        return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{where} is no vocabulary of CLIP's kind (no model.merges): {shown(repr(error))}"
        ) from error


def _lines(path: Path) -> list[str]:
    """Return all merges of a file, whatever their number."""
    if path.suffix == ".json":
        return merges_in(readers.json_value(path), str(path))
    data = readers.content(path)
    if path.suffix == ".gz":
        data = readers.unzip(data, str(path), _MAX_UNPACKED)
    # Not splitlines(), which would part pieces that hold other separators.
    lines = readers.decoded(data, str(path)).replace("\r\n", "\n").rstrip("\n").split("\n")
    return lines[1:] if "#version" in lines[0] else lines


def _compare(path: Path, ids: Any, merges: Sequence[str]) -> None:
    """Refuse ids of a file that are not those that follow from the merges."""
    if ids is None:
        return
    if not isinstance(ids, Mapping):
        raise InputError(f"{path} has no ids by their pieces; give CLIP's tokenizer")
    wrong = [piece for i, piece in enumerate(tokens(merges)) if ids.get(piece) != i]
    if wrong:
        raise InputError(
            f"{path} has other ids than CLIP's, {len(wrong)} of them, such as that of "
            f"{wrong[0]!r}; such a tokenizer is not known here"
        )
