"""Pictures by index, each with its class, its caption or neither; those of tensorflow-datasets."""

import abc
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dimo_jax.common import pictures
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import quoted, shown
from dimo_jax.data import prompt_files, splits
from dimo_jax.data.built_in import BuiltIn
from dimo_jax.data.digits import Digits
from dimo_jax.data.emoji import Emoji

BUILT_IN: dict[str, type[BuiltIn]] = {"digits": Digits, "emoji": Emoji}
CONDITIONS = ("label", "text", "none")
FIELD_FLAG = "--field"


class PictureSource(abc.ABC):
    """Pictures of any size, read one at a time; threads may do so together.

    Attributes:
        where: what they were opened by.
        num: of the pictures.
        condition: of CONDITIONS: what each has beside it.
        class_names: of the labels 0, 1, ...; empty unless `condition` is "label".
        version: changes when the list of pictures, labels or captions does; not when the content
            of a file does.
        notes: what lies in the same place and is left out, each in a sentence.
    """

    def __init__(self, where: str, num: int, condition: str, class_names: list[str], version: str):
        if not num:
            raise InputError(f"{where} has no pictures")
        self.where, self.num, self.condition = where, num, condition
        self.class_names, self.version = class_names, version
        self.notes: list[str] = []

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Return the name of a picture within the source."""

    @abc.abstractmethod
    def read(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return the RGB pixels of a picture.

        What is not RGB of 8 bits becomes so as pictures.decode says: transparency is dropped.

        Raises:
            InputError: it cannot be read.
        """

    def kinds(self, index: int) -> tuple[str, ...]:
        """Return in what a picture's file differs from 8-bit RGB, as pictures.decode says.

        Raises:
            InputError: as `read`.
        """
        return ()

    def stamp(self, index: int) -> str:
        """Return a text that changes when the file does, as far as is known without reading it."""
        return ""

    def label(self, index: int) -> int:
        """Return the class of a picture; only of labelled ones.

        Raises:
            InputError: it is none of the classes.
        """
        raise NotImplementedError

    def text(self, index: int) -> str:
        """Return the caption of a picture; only of those with captions.

        Raises:
            InputError: it is empty.
        """
        raise NotImplementedError


class Dataset(PictureSource):
    """A split of tensorflow-datasets, or of a built-in set.

    Args:
        where: tfds:NAME:SPLIT; a built-in set is made on the spot, another that is not in data_dir
            is downloaded where its authors allow that.
        condition: of CONDITIONS; empty for what there is, a label rather than a text.
        field: that holds it, "captions/text" for one inside another; empty for the one that does by
            its kind and name.
        data_dir: parent directory of the data sets, in the format array_record.
        upright: turn pictures as their EXIF orientation says.

    Raises:
        InputError: it cannot be opened, has no pictures, or not what `condition` wants.
    """

    def __init__(
        self,
        where: str,
        condition: str = "",
        field: str = "",
        data_dir: str | os.PathLike = prompt_files.DATA_DIR,
        upright: bool = True,
    ):
        name, split = splits.parse(where)
        if name in BUILT_IN:
            features, self._examples, version = _of_built_in(BUILT_IN[name], split, data_dir)
        else:
            features, self._examples, version = splits.open_split(
                name, split, data_dir, encoded_pictures=True
            )
        # By name: a prepared set lists its features in another order in each process.
        features = dict(sorted(features.items()))
        found = [
            key for key, x in features.items() if len(x.shape or ()) == 3 and x.np_dtype == np.uint8
        ]
        if not found:
            raise InputError(f"{name} has {', '.join(features)}, but no picture of 8 bits")
        self._key, self._upright = "image" if "image" in found else found[0], upright
        condition, self._field = _chosen(features, condition, field, where)
        names = splits.class_names(features[self._field]) if condition == "label" else None
        super().__init__(where, len(self._examples), condition, names or [], version)
        if condition == "label":  # a test split without labels has -1 for all of them
            self.label(0)

    def name(self, index: int) -> str:
        """Return its number in the split."""
        return str(index)

    def read(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Read a picture, and decode it where it lies as a file."""
        found = self._stored(index)
        if isinstance(found, bytes):
            return np.asarray(self._decoded(index, found).image)
        pixels = np.asarray(found)[..., :3]
        if pixels.shape[2] == 2:  # gray and its transparency
            pixels = pixels[..., :1]
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))

    def kinds(self, index: int) -> tuple[str, ...]:
        """Look at a picture that lies as a file."""
        found = self._stored(index)
        return self._decoded(index, found).kinds if isinstance(found, bytes) else ()

    def _stored(self, index: int) -> Any:
        """Return pixels, or the bytes of a file."""
        try:
            return self._examples[index][self._key]
        except Exception as error:  # array_record, protobuf and tfds raise types of their own
            raise InputError(f"{self._place(index)} cannot be read ({shown(error)})") from error

    def _decoded(self, index: int, data: bytes) -> pictures.Opened:
        return pictures.decode(data, self._place(index), rgb=True, upright=self._upright)

    def label(self, index: int) -> int:
        """Return the class of a picture."""
        value = int(self._examples[index][self._field])
        if not 0 <= value < len(self.class_names):
            raise InputError(
                f"{self._place(index)} has label {value}, expected 0 to "
                f"{len(self.class_names) - 1}; choose a split with labels, or --condition=none"
            )
        return value

    def text(self, index: int) -> str:
        """Return the caption of a picture; the first one of several."""
        where = self._place(index)
        found = prompt_files.texts_at(self._examples[index], self._field, where, FIELD_FLAG)
        return first_text(found, where)

    def _place(self, index: int) -> str:
        return f"{self.where}, example {index},"


def first_text(found: Any, where: str) -> str:
    """Return the first of a picture's captions.

    Args:
        found: an iterable of them.
        where: the picture in words.

    Raises:
        InputError: there is none, it is blank, or no text that a file can hold.
    """
    text = next(iter(found), "").strip()
    if not text:
        raise InputError(f"{where} has an empty caption; write one, or leave the picture out")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # lone surrogates, which JSON can spell
        raise InputError(f"{where} has a caption that is no Unicode: {quoted(text)}") from error
    return text


def _of_built_in(known: type[BuiltIn], split: str, data_dir: str | os.PathLike) -> splits.Split:
    found = known.load(split, data_dir)
    levels = (found.images * 255.0 + 0.5).astype(np.uint8)
    examples: list[dict[str, Any]] = [
        {known.KEY: one, "label": label} for one, label in zip(levels, found.labels, strict=True)
    ]
    for example, text in zip(examples, found.texts, strict=False):
        example["text"] = text
    return splits.Split(known.features(), examples, str(known.VERSION))


def _chosen(features: Mapping[str, Any], condition: str, field: str, where: str) -> tuple[str, str]:
    """Return the condition and the field that holds it."""
    classes = [name for name, x in features.items() if splits.class_names(x) is not None]
    if field:
        if field.partition("/")[0] not in features:
            raise prompt_files.lacks(where, field, features, FIELD_FLAG)
        is_label = field in classes
        if condition == "label" and not is_label:
            known = ", ".join(classes) or "none"
            raise InputError(f"{field} of {where} has no classes; those that do: {known}")
        return condition or ("label" if is_label else "text"), field
    label = "label" if "label" in classes else classes[0] if len(classes) == 1 else None
    text = prompt_files.field_of_texts(features)
    if condition in ("", "label") and label is not None:
        return "label", label
    if condition in ("", "text") and text is not None:
        return "text", text
    if condition in ("label", "text"):
        raise InputError(
            f"{where} has {', '.join(features)}, none of which is known to be the {condition}; "
            f"name it with {FIELD_FLAG}, or give --condition=none"
        )
    return "none", ""
