"""Splits of tensorflow-datasets, as tfds:NAME:SPLIT names them."""

import os
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from dimo_jax.common.errors import InputError

DATASET = "tfds:"


class Split(NamedTuple):
    """A split, ready to be read by index.

    Attributes:
        features: {name: what it holds} of an example.
        examples: the examples, each a dict.
        version: of the data set.
    """

    features: Any
    examples: Any
    version: str


def parse(where: str) -> tuple[str, str]:
    """Name and split of tfds:NAME:SPLIT.

    Raises:
        InputError: it is not of that form.
    """
    name, _, split = where.removeprefix(DATASET).partition(":")
    if not name or not split:
        raise InputError(f"{where} is not tfds:NAME:SPLIT, e.g. tfds:cifar10:train")
    return name, split


def open_split(
    name: str, split: str, data_dir: str | os.PathLike, encoded_pictures: bool = False
) -> Split:
    """Return a split of a data set that tensorflow-datasets knows.

    Args:
        name: of the data set; one that is not in data_dir is downloaded where its authors allow it.
        split: e.g. "train", or "train[:1000]".
        data_dir: parent directory of the data sets, in the format array_record.
        encoded_pictures: leave pictures as the bytes of their files; tensors are arrays anyway.

    Raises:
        InputError: it cannot be opened.
    """
    try:
        builder = tfds.builder(name, data_dir=os.path.expanduser(os.fspath(data_dir)))
        builder.download_and_prepare(file_format="array_record")
        features: Any = builder.info.features
        encoded = (k for k, x in features.items() if encoded_pictures and is_encoded(x))
        decoders = {key: tfds.decode.SkipDecoding() for key in encoded}
        # The types of tensorflow-datasets lose this method's arguments in a decorator.
        examples = builder.as_data_source(split=split, decoders=decoders)  # pyright: ignore[reportCallIssue]
    except Exception as error:  # tfds, its downloaders and array_record raise types of their own
        raise InputError(
            f"tensorflow-datasets cannot open {name} {split} in {data_dir} "
            f"({(str(error).splitlines() or [type(error).__name__])[0]}); prepare it there with "
            f"`tfds build {name} --file_format=array_record`"
        ) from error
    return Split(features, examples, str(builder.version))


def is_encoded(feature: Any) -> bool:
    """Return whether a feature is a picture that lies in its records as a file."""
    return isinstance(feature, tfds.features.Image)


def class_names(feature: Any) -> list[str] | None:
    """Return the names of a feature's classes, their numbers if they have none; else None."""
    return feature.names if isinstance(feature, tfds.features.ClassLabel) else None
