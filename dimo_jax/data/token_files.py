"""Writes what token_sets reads: shards one by one, then the folder of them, whole or not at all.

Axes: N examples, V views, L tokens.
"""

import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  # a library of C++
)
from jaxtyping import Int

from dimo_jax.common import files
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.shown import quoted
from dimo_jax.data.token_sets import (
    FORMAT,
    NAME,
    SPLIT,
    TOKENS_FILE,
    Example,
    Facts,
    shard_name,
)

_OWN = re.compile(
    r"tokens\.json|dataset_info\.json|features\.json|label\.labels\.txt|"
    r"tokens-train\.array_record-\d{5,}-of-\d{5,}"
)


def shard(
    facts: Facts,
    tokens: Int[np.ndarray, "N V L"],
    names: Sequence[str],
    labels: Sequence[int] = (),
    texts: Sequence[str] = (),
) -> bytes:
    """Return the file of some examples; the same bytes for the same examples.

    Args:
        facts: of the set.
        tokens: of each example and view.
        names: of the pictures.
        labels: one for each where the condition is "label", else none.
        texts: as many where it is "text".

    Raises:
        ValueError: they are not those of the facts.
    """
    wanted = (len(names), facts.views, facts.length)
    needed = {"label": (len(names), 0), "text": (0, len(names)), "none": (0, 0)}
    if tokens.shape != wanted or (len(labels), len(texts)) != needed[facts.condition]:
        raise ValueError(f"tokens of {tokens.shape}, expected {wanted}; or too few conditions")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < facts.codebook_size:
        raise ValueError(f"a token is outside 0 .. {facts.codebook_size - 1}")
    with tempfile.TemporaryDirectory() as box:
        place = Path(box, "shard")
        writer = array_record_module.ArrayRecordWriter(str(place), "group_size:1")
        for i, name in enumerate(names):
            example = Example()
            feature = example.features.feature
            feature["tokens"].bytes_list.value.append(tokens[i].astype(facts.dtype).tobytes())
            # Names of files need not be UTF-8.
            feature["name"].bytes_list.value.append(name.encode(errors="backslashreplace"))
            if labels:
                feature["label"].int64_list.value.append(labels[i])
            if texts:
                feature["text"].bytes_list.value.append(texts[i].encode())
            writer.write(example.SerializeToString(deterministic=True))
        writer.close()
        return place.read_bytes()


def write(
    place: AnyPath,
    facts: Facts,
    shards: Sequence[tuple[int, AnyPath]],
    skipped: Sequence[tuple[str, str]] = (),
) -> AnyPath:
    """Write a tokens folder, whole or not at all; one that is there is replaced.

    Args:
        place: the folder.
        facts: of the set.
        shards: (examples, file) of each, in order and not empty, from `shard`.
        skipped: (name, reason) of pictures that could not be read.

    Raises:
        InputError: the place holds something else, or cannot be written.
    """
    lengths = [num for num, _ in shards]
    described = {
        "format": FORMAT,
        "num_examples": sum(lengths),
        **dataclasses.asdict(facts),
        "skipped": [list(x) for x in skipped],
    }
    text = json.dumps(described, indent=1, default=dict) + "\n"

    def pairs() -> Iterator[tuple[str, bytes]]:
        yield TOKENS_FILE, text.encode()
        yield from _metadata(facts, lengths).items()
        for i, (_, file) in enumerate(shards):
            yield shard_name(i, len(shards)), file.read_bytes()

    return files.write_folder(place, pairs(), foreign)


def foreign(folder: AnyPath) -> str | None:
    """Name what a folder holds that is not a tokens folder's; see files.write_folder."""
    names = sorted(x.name for x in folder.iterdir())
    if names and TOKENS_FILE not in names and not files.is_remote(folder):
        return f"{names[0]} and no {TOKENS_FILE}"
    return next((x for x in names if not _OWN.fullmatch(x)), None)


def check_class_names(names: Sequence[str]) -> None:
    """Refuse names that tensorflow-datasets, which writes them as lines, would change.

    Raises:
        InputError: naming one.
    """
    wrong = [x for x in names if not x.isprintable() or x != x.strip() or not x]
    twice = [x for x in names if names.count(x) > 1] if len({*names}) < len(names) else []
    for name in [*wrong, *twice]:
        raise InputError(
            f"a class is called {quoted(name)}; names must differ, and be of characters that are "
            "printed, without spaces around them; rename it"
        )


def _metadata(facts: Facts, lengths: Sequence[int]) -> dict[str, bytes]:
    """Return what tensorflow-datasets reads, by file."""
    features: dict[str, Any] = {
        # As bytes: integers of tf.Example are 64 bits wide, and take four times as long to read.
        "tokens": tfds.features.Tensor(
            shape=(facts.views, facts.length), dtype=facts.dtype, encoding="bytes"
        ),
        "name": tfds.features.Text(),
    }
    if facts.condition == "label":
        features["label"] = tfds.features.ClassLabel(names=list(facts.class_names))
    if facts.condition == "text":
        features["text"] = tfds.features.Text()
    with tempfile.TemporaryDirectory() as box:
        Path(box, shard_name(0, len(lengths))).touch()  # of which it reads the name
        template = tfds.core.ShardedFileTemplate(
            data_dir=Path(box),  # pyright: ignore[reportArgumentType]  # any path will do
            dataset_name=NAME,
            split=SPLIT,
            filetype_suffix="array_record",
        )
        size = sum(lengths) * facts.views * facts.length * facts.dtype.itemsize
        split = tfds.core.SplitInfo(
            name=SPLIT, shard_lengths=list(lengths), num_bytes=size, filename_template=template
        )
        tfds.folder_dataset.write_metadata(
            data_dir=box,
            features=tfds.features.FeaturesDict(features),
            split_infos=[split],
            check_data=False,  # with TensorFlow
            description=f"Pictures as {facts.length} tokens each, from dimo_jax; see {TOKENS_FILE}",
        )
        written = sorted(Path(box).iterdir())
        return {x.name: x.read_bytes() for x in written if x.name != shard_name(0, len(lengths))}
