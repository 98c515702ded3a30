"""A vocabulary of CLIP's kind for the texts of a data set: pieces by how often they occur."""

import json
from collections.abc import Iterable

from tokenizers import trainers

from dimo_jax.common.errors import InputError
from dimo_jax.conditions import transformers_tokenizer
from dimo_jax.conditions.clip_vocabulary import NUM_OTHER_IDS, byte_characters


def train(texts: Iterable[str], vocabulary: int) -> list[str]:
    """Return the merges of byte-pair encoding, the same for the same texts.

    Args:
        texts: which are cut into words as CLIP's tokenizer cuts them.
        vocabulary: ids that the text tower has.

    Returns:
        vocabulary - NUM_OTHER_IDS merges, each "left right", the most frequent first.

    Raises:
        InputError: the ids do not hold the bytes, or the texts do not give as many merges.
    """
    wanted = vocabulary - NUM_OTHER_IDS
    if wanted < 0:
        raise InputError(
            f"a vocabulary of {vocabulary} ids has no room for the bytes; give at least "
            f"{NUM_OTHER_IDS}"
        )
    characters = byte_characters()
    made, _ = transformers_tokenizer.from_json(transformers_tokenizer.from_merges([], 2))
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,  # start and end are not counted: two merges more than wanted
        show_progress=False,
        initial_alphabet=characters,
        end_of_word_suffix="</w>",
        # Named, or they are numbered as they are met, in the order of a hash table (tokenizers
        # 0.23.3): another one in every process, and equally frequent pairs go by their numbers.
        special_tokens=[f"{character}</w>" for character in characters],
    )
    made.train_from_iterator(texts, trainer)
    merges = [" ".join(pair) for pair in json.loads(made.to_str())["model"]["merges"]][:wanted]
    if len(merges) < wanted:
        raise InputError(
            f"the texts give {len(merges)} merges and no more, so that a vocabulary of {vocabulary}"
            f" ids is too large; give at most {NUM_OTHER_IDS + len(merges)}"
        )
    return merges
