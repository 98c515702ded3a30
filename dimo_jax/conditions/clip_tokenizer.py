"""Text -> the ids of CLIP's tokenizer, as open_clip makes them and as transformers does.

Byte-level pair encoding by the package `tokenizers`, which is given everything in memory. The two
differ in what is done to a text before it is cut into words, in whether the padding's own word is
looked for in it, and in the tables of Unicode that say what a letter is.
"""

import hashlib
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ftfy
import numpy as np
import regex
from ftfy.fixes import fix_surrogates
from jaxtyping import Int
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from dimo_jax.common.errors import InputError
from dimo_jax.conditions import clip_vocabulary, transformers_tokenizer
from dimo_jax.conditions.transformers_tokenizer import TOKENIZER_FILE

# Special tokens, contractions, words, single digits, and runs of anything else. By open_clip's own
# package: with IGNORECASE it takes signs for letters that have a letter as their other case.
_WORDS = regex.compile(
    r"<start_of_text>|<end_of_text>"
    r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
_SPECIAL = ("<start_of_text>", "<end_of_text>")
_SHOWN = 60  # characters of a prompt in a message


class ClipTokenizer:
    """A tokenizer with its vocabulary in memory, of `open_clip`, `transformers` or `of_files`.

    Args:
        encode: texts -> the ids of each alone, without start and end.
        special: ids of (start, end, padding).
        num_ids: one more than the largest id.
        context: ids of a row.
        files: what a bundle carries of it, by name.

    Attributes:
        start, end, pad: ids.
        num_ids, context, files: as given.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[str]], list[list[int]]],
        special: tuple[int, int, int],
        num_ids: int,
        context: int,
        files: Mapping[str, bytes],
    ):
        self.ids, self.num_ids, self.context, self.files = encode, num_ids, context, dict(files)
        self.start, self.end, self.pad = special

    @property
    def identity(self) -> dict[str, str]:
        """What a training depends on besides the tower; nothing of open_clip's, which it decides.

        So trainings and caches that were begun before there was another kind go on.
        """
        if TOKENIZER_FILE not in self.files:
            return {}
        return {"text_tokenizer": hashlib.sha256(self.files[TOKENIZER_FILE]).hexdigest()}

    def __call__(self, texts: Sequence[str], prefix: str = "") -> Int[np.ndarray, "N C"]:
        """Rows of ids as the text tower takes them.

        Args:
            texts: prompts of any length.
            prefix: words whose ids stand in front of every text's. They are encoded alone, as in
                the CLIP score's code, so that a text that begins with a sign keeps its words.

        Returns:
            [N, context] int32: start, prefix, text, end, padding. What is too long is cut, and the
            end token takes the last place.
        """
        first = self.ids([prefix])[0] if prefix else []
        rows = np.full((len(texts), self.context), self.pad, np.int32)
        for row, ids in zip(rows, self.ids(texts), strict=True):
            ids = [self.start, *first, *ids, self.end][: self.context]
            row[: len(ids)] = ids
            if len(ids) == self.context:
                row[-1] = self.end
        return rows

    def describe_cut(self, texts: Sequence[str], prefix: str = "") -> str | None:
        """Say which texts are longer than a row.

        Args:
            texts: as they are encoded.
            prefix: likewise.

        Returns:
            '3 of 200 prompts are longer than 77 tokens and were cut: first ...'; None where all
            fit.
        """
        room = self.context - 2 - (len(self.ids([prefix])[0]) if prefix else 0)
        cut = [i for i, ids in enumerate(self.ids(texts)) if len(ids) > room]
        if not cut:
            return None
        first = repr(texts[cut[0]][:_SHOWN])  # with its control characters escaped
        are, were = ("is", "was") if len(cut) == 1 else ("are", "were")
        return (
            f"{len(cut):,} of {len(texts):,} prompts {are} longer than {self.context} tokens and "
            f"{were} cut: first number {cut[0] + 1:,}, {first}..."
        )


def open_clip(merges: Sequence[str], context: int = 77) -> ClipTokenizer:
    """Return the tokenizer of open_clip, of CLIP score and of HPS.

    Args:
        merges: of clip_vocabulary.read.
        context: ids of a row.

    Raises:
        InputError: the merges are no vocabulary.
    """
    pieces = clip_vocabulary.tokens(merges)
    pairs: list[Any] = [tuple(merge.split(" ")) for merge in merges]
    known = {piece: i for i, piece in enumerate(pieces)}
    try:
        bpe = models.BPE(vocab=known, merges=pairs, end_of_word_suffix="</w>")
    except Exception as error:  # the package raises a bare Exception
        raise InputError(f"the merges are no vocabulary of CLIP's kind: {error}") from error
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in _SPECIAL])

    def encode(texts: Sequence[str]) -> list[list[int]]:
        words = [_WORDS.findall(_clean(text)) for text in texts]
        return [found.ids for found in tokenizer.encode_batch(words, is_pretokenized=True)]

    special = (len(pieces), len(pieces) + 1, 0)
    files = {clip_vocabulary.MERGES_FILE: clip_vocabulary.to_text(merges)}
    return ClipTokenizer(encode, special, len(pieces) + 2, context, files)


def _clean(text: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def transformers(data: bytes, context: int = 77) -> ClipTokenizer:
    """Return the tokenizer of a Hugging Face folder, with the ids of transformers' CLIPTokenizer.

    Args:
        data: of transformers_tokenizer.read.
        context: ids of a row.

    Raises:
        InputError: it is nothing that was written there.
    """
    tokenizer, special = transformers_tokenizer.from_json(data)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        # Lone surrogates, which JSON can spell, are no text for the package.
        fixed = [fix_surrogates(text) for text in texts]
        return [found.ids for found in tokenizer.encode_batch(fixed, add_special_tokens=False)]

    num_ids = 1 + max(tokenizer.get_vocab().values())
    return ClipTokenizer(encode, special, num_ids, context, {TOKENIZER_FILE: data})


def of_files(files: Mapping[str, bytes], sizes: Mapping[str, int], where: object) -> ClipTokenizer:
    """Return the tokenizer that a bundle of CLIP carries.

    That of its Hugging Face folder, or open_clip's.

    Args:
        files: of the bundle, by name.
        sizes: of its text tower: the "context", ids of a row, and the "vocabulary", all ids.
        where: the bundle, for messages.

    Raises:
        InputError: there is none, or a damaged one, or one of another tower.
    """
    if TOKENIZER_FILE in files:
        found = transformers(files[TOKENIZER_FILE], sizes["context"])
    else:
        found = open_clip(merges_of(files, where), sizes["context"])
    if found.num_ids > sizes["vocabulary"]:
        raise InputError(
            f"{where} has a tokenizer of {found.num_ids:,} ids and a text tower of "
            f"{sizes['vocabulary']:,}; convert the text encoder again"
        )
    return found


def merges_of(files: Mapping[str, bytes], where: object) -> list[str]:
    """Return the merges of the vocabulary that a bundle of CLIP carries.

    Args:
        files: of the bundle, by name.
        where: the bundle, for messages.

    Raises:
        InputError: there is none, or a damaged one.
    """
    if TOKENIZER_FILE in files:
        return transformers_tokenizer.merges_of(files[TOKENIZER_FILE])
    if clip_vocabulary.MERGES_FILE not in files:
        raise InputError(f"{where} carries no tokenizer; convert the checkpoint again")
    return clip_vocabulary.from_text(files[clip_vocabulary.MERGES_FILE])
