"""Pictures that an installed package carries, as data sets: made once, read from files after that.

A set is a class: what is particular to it, and how it is made. It is written as a
tensorflow-datasets data set of array_record files; neither writing nor reading needs TensorFlow.
"""

import abc
import contextlib
import fcntl
import glob
import io
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Int, UInt8

from dimo_jax.common.errors import InputError
from dimo_jax.common.files import is_remote

_log = logging.getLogger(__name__)


class Pictures(NamedTuple):
    """A split, N pictures."""

    images: Float[np.ndarray, "N H W C"]  # float32 in [0, 1]
    labels: Int[np.ndarray, "N"]  # int32, the class
    texts: tuple[str, ...] = ()  # one for each picture, or none at all


class Source(NamedTuple):
    """All pictures of a set, in the order of their package."""

    levels: UInt8[np.ndarray, "N H W C"]  # 0 .. MAX_LEVEL
    labels: Int[np.ndarray, "N"]
    splits: Mapping[str, Int[np.ndarray, "M"]]  # ascending indices
    texts: Sequence[str] = ()


class BuiltIn(tfds.core.GeneratorBasedBuilder, abc.ABC, skip_registration=True):
    """A set of pictures in the form that tensorflow-datasets reads and writes.

    Attributes:
        NUM_EXAMPLES: of each split.
        IMAGE_SHAPE: (H, W, C).
        MAX_LEVEL: the level that is 1.0.
        NUM_CLASSES: labels are 0 .. NUM_CLASSES - 1.
        CLASS_NAMES: of the labels; empty: their numbers.
        HAS_TEXTS: whether each picture has one.
        ABOUT: description, homepage, citation and license, as tfds.core.DatasetInfo takes them.
        KEY: name of the pictures in the files.
        NEEDS: {module: its package}, what `source` imports of the extra with the set's name.
    """

    NUM_EXAMPLES: Mapping[str, int]
    IMAGE_SHAPE: tuple[int, int, int]
    MAX_LEVEL: int
    NUM_CLASSES: int
    CLASS_NAMES: tuple[str, ...] = ()
    HAS_TEXTS = False
    ABOUT: Mapping[str, Any]
    KEY = "image"
    NEEDS: Mapping[str, str]

    # Where tfds would look for lists of checksums of downloads; there are none. Its own search
    # imports importlib_resources, which it installs only for Python 3.8 (tfds 4.9.10).
    code_path = None

    @classmethod
    @abc.abstractmethod
    def source(cls) -> Source:
        """Return all pictures, from the package.

        Raises:
            InputError: it is missing.
        """

    @classmethod
    def features(cls) -> tfds.features.FeaturesDict:
        """Return what an example holds."""
        names = cls.CLASS_NAMES or None
        num_classes = None if names else cls.NUM_CLASSES
        features: dict[str, Any] = {
            "index": tfds.features.Scalar(dtype=np.int32),  # in the package's order
            # A plain tensor rather than features.Image, which wants TensorFlow to encode arrays and
            # would show few levels as black.
            cls.KEY: tfds.features.Tensor(shape=cls.IMAGE_SHAPE, dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=num_classes, names=names),
        }
        if cls.HAS_TEXTS:
            features["text"] = tfds.features.Text()
        return tfds.features.FeaturesDict(features)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=self.features(),
            supervised_keys=(self.KEY, "label"),
            **self.ABOUT,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self.NUM_EXAMPLES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        found = self.source()
        for index in found.splits[split].tolist():
            example = {"index": index, self.KEY: found.levels[index]}
            example["label"] = int(found.labels[index])
            yield index, example | ({"text": found.texts[index]} if found.texts else {})

    @classmethod
    def load(cls, split: str, data_dir: str | os.PathLike) -> Pictures:
        """Return the pictures of a split, made on the first call and read from files ever after.

        The files appear under their final name in one rename, so a process killed while it writes
        them leaves nothing that would be read later, and several processes may call this at once.
        Files that cannot be read (a copy that broke off, a damaged disk) are made again, with a
        warning.

        Args:
            split: a key of NUM_EXAMPLES.
            data_dir: parent directory of the data sets; see `folder_of`. They are read from a disk
                only: for gs://... they are made anew on this machine, and not kept.

        Returns:
            The pictures in the package's order.

        Raises:
            InputError: if there is no such split, data_dir cannot be written, or the package is
                missing.
        """
        if split not in cls.NUM_EXAMPLES:
            raise InputError(f"the split is {split!r}, expected one of {list(cls.NUM_EXAMPLES)}")
        if is_remote(data_dir):
            with tempfile.TemporaryDirectory() as here:
                return cls.load(split, here)
        data_dir = os.path.expanduser(os.fspath(data_dir))
        files = cls.folder_of(data_dir)
        try:
            if os.path.isdir(files):
                try:
                    return cls._read(split, data_dir)
                # tfds, protobuf and array_record each raise types of their own here.
                except Exception as error:
                    cls._refuse_foreign(files)
                    _log.warning("%s cannot be read (%s): generating it again", files, error)
                    shutil.rmtree(files)
            cls._generate(data_dir, files)
        except OSError as error:
            raise InputError(
                f"the {cls.name} cannot be written to data_dir {data_dir!r} ({error}): name a "
                "directory that can be written"
            ) from error
        return cls._read(split, data_dir)

    @classmethod
    def folder_of(cls, data_dir: str | os.PathLike) -> str:
        """Return where the files of `load` lie, on a disk."""
        data_dir = os.path.expanduser(os.fspath(data_dir))
        return os.path.join(data_dir, cls.name, str(cls.VERSION))

    @classmethod
    def in_memory(cls, split: str) -> Pictures:
        """Return the pictures of `load`, straight from the package: nothing is written.

        Args:
            split: a key of NUM_EXAMPLES.

        Raises:
            InputError: the package is missing.
        """
        found = cls.source()
        chosen = found.splits[split]
        texts = tuple(found.texts[int(i)] for i in chosen) if found.texts else ()
        return cls._pictures(found.levels[chosen], found.labels[chosen], texts)

    @classmethod
    def _pictures(cls, levels: np.ndarray, labels: Any, texts: Sequence[str]) -> Pictures:
        images = levels.astype(np.float32) / cls.MAX_LEVEL
        return Pictures(images, np.asarray(labels, np.int32), tuple(texts))

    @classmethod
    def _read(cls, split: str, data_dir: str) -> Pictures:
        # The types of tensorflow-datasets lose this method's arguments in a decorator.
        builder: Any = cls._builder(data_dir)
        source = builder.as_data_source(split=split)
        examples = sorted(source.__getitems__(range(len(source))), key=lambda e: int(e["index"]))
        if len(examples) != cls.NUM_EXAMPLES[split]:
            raise ValueError(f"{len(examples)} examples, expected {cls.NUM_EXAMPLES[split]}")
        texts = [example["text"].decode() for example in examples] if cls.HAS_TEXTS else ()
        levels = np.stack([example[cls.KEY] for example in examples])
        return cls._pictures(levels, [example["label"] for example in examples], texts)

    @classmethod
    def _builder(cls, data_dir: str) -> "BuiltIn":
        return cls(data_dir=data_dir, file_format="array_record")

    @classmethod
    def _refuse_foreign(cls, folder: str) -> None:
        """Refuse to make anew what was not made here."""
        records = rf"{cls.name}-\w+\.array_record-\d+-of-\d+"
        own = re.compile(rf"(dataset_info|features)\.json|label\.labels\.txt|LICENSE|{records}")
        foreign = [name for name in os.listdir(folder) if not own.fullmatch(name)]
        if foreign:
            raise InputError(
                f"{folder} holds {foreign[0]} and is no data set of this program; name another "
                "data_dir"
            )

    @classmethod
    def _generate(cls, data_dir: str, files: str) -> None:
        cls.source()  # first, so that a missing package is reported before anything is written
        tfds.disable_progress_bar()
        _log.info("writing the %s to %s", cls.name, files)
        with _only_writer(files):
            if os.path.isdir(files):
                return
            try:
                # What it prints announces a download of unknown size; there is none.
                with contextlib.redirect_stdout(io.StringIO()):
                    cls._builder(data_dir).download_and_prepare()
            except OSError:
                # Where there are no locks another process may have finished first: then the rename
                # onto its files fails, rightly.
                if not os.path.isdir(files):
                    raise


@contextlib.contextmanager
def _only_writer(files: str) -> Iterator[None]:
    """Keep other processes from writing, and remove what those that were killed have left.

    A lock ends with its process, so whatever bears tfds's temporary name while it is held belongs
    to nobody. File systems without locks keep such remains.
    """
    folder, version = os.path.split(files)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".lock"), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            _log.info("%s cannot be locked (%s)", folder, error)
        else:
            for left in glob.glob(os.path.join(glob.escape(folder), f"incomplete.*_{version}")):
                shutil.rmtree(left, ignore_errors=True)
        yield
