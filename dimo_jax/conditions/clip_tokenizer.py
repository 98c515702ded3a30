"""Text -> the ids of CLIP's tokenizer, as open_clip and as Hugging Face make them.

Byte-level pair encoding by the package `tokenizers`, on lower-cased text; the package is given the
merges and asks for nothing from outside.
"""

import html
import re
import unicodedata
from collections.abc import Callable, Sequence

import ftfy
import numpy as np
from jaxtyping import Int
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from dimo_jax.conditions import clip_vocabulary
from dimo_jax.errors import InputError

# Contractions, words, single digits, and runs of anything else.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def _open_clip(text: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


def _hugging_face(text: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).lower()


# What is done to a text before it is cut into words. On plain ASCII without "&...;" they agree.
CLEANINGS: dict[str, Callable[[str], str]] = {
    "open_clip": _open_clip,
    "huggingface": _hugging_face,
}


class ClipTokenizer:
    """A tokenizer with its vocabulary in memory.

    Args:
        merges: of clip_vocabulary.read.
        context: ids of a row.
        cleaning: a key of CLEANINGS: "open_clip", which the scores' packages use, or "huggingface".

    Attributes:
        start, end: the two last ids.

    Raises:
        InputError: the merges are no vocabulary, or the cleaning is unknown.
    """

    def __init__(self, merges: Sequence[str], context: int = 77, cleaning: str = "open_clip"):
        if cleaning not in CLEANINGS:
            raise InputError(f"there is no cleaning {cleaning!r}; there are {', '.join(CLEANINGS)}")
        pieces = clip_vocabulary.tokens(merges)
        pairs = [tuple(merge.split(" ")) for merge in merges]
        known = {piece: i for i, piece in enumerate(pieces)}
        try:
            bpe = models.BPE(vocab=known, merges=pairs, end_of_word_suffix="</w>")
        except Exception as error:  # the package raises a bare Exception
            raise InputError(f"the merges are no vocabulary of CLIP's kind: {error}") from error
        self._tokenizer = Tokenizer(bpe)
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._clean, self._context = CLEANINGS[cleaning], context
        self.start, self.end = len(pieces), len(pieces) + 1

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text alone, of any number, without start and end."""
        cleaned = [self._clean(text) for text in texts]
        return [found.ids for found in self._tokenizer.encode_batch(cleaned)]

    def __call__(
        self, texts: Sequence[str], prefix: str = "", pad_id: int = 0
    ) -> Int[np.ndarray, "N C"]:
        """Rows of ids as the text tower takes them.

        Args:
            texts: prompts of any length.
            prefix: words whose ids stand in front of every text's. They are encoded alone, as in
                the CLIP score's code, so that a text that begins with a sign keeps its words.
            pad_id: what stands behind the end; 0 in open_clip and in Meissonic's tokenizer.

        Returns:
            [N, context] int32: start, prefix, text, end, padding. What is too long is cut, and the
            end token takes the last place.
        """
        first = self.ids([prefix])[0] if prefix else []
        rows = np.full((len(texts), self._context), pad_id, np.int32)
        for row, ids in zip(rows, self.ids(texts), strict=True):
            ids = [self.start, *first, *ids, self.end][: self._context]
            row[: len(ids)] = ids
            if len(ids) == self._context:
                row[-1] = self.end
        return rows
