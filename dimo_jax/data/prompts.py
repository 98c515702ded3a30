"""Prompts to train on: each of a list's once."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence

from dimo_jax.common.errors import InputError
from dimo_jax.data import prompt_files


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
        fields: of the records that they were found in; none of plain text.
    """

    where: str
    texts: Sequence[str]
    found: int
    blank: int
    repeated: int
    sha256: str
    fields: Sequence[str] = ()

    def describe(self) -> str:
        """'1,200 prompts of list.csv, field caption (1,300 read, 20 blank, 80 repeated)'."""
        left = [f"{self.blank:,} blank"] if self.blank else []
        left += [f"{self.repeated:,} repeated"] if self.repeated else []
        more = f" ({', '.join([f'{self.found:,} read', *left])})" if left else ""
        where = prompt_files.describe(self.where, self.fields)
        return f"{len(self.texts):,} prompts of {where}{more}"


def read(
    where: str, field: str = "", data_dir: str | os.PathLike = prompt_files.DATA_DIR
) -> PromptList:
    """Return all prompts of a place.

    Args:
        where: as for prompt_files.Texts.
        field: likewise.
        data_dir: likewise.

    Raises:
        InputError: as prompt_files.Texts, or it has no prompt.
    """
    texts = prompt_files.Texts(where, field, data_dir=data_dir)
    return dataclasses.replace(unique(where, texts), fields=tuple(texts.fields))


def unique(where: str, found: Iterable[str]) -> PromptList:
    """Return the list of some texts.

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
