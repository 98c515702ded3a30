"""Handwritten digits: 1,797 real images of 8x8 pixels with 17 gray levels, offline.

They are the ones that scikit-learn carries, the test part of

    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49

and are written once as a tensorflow-datasets data set of array_record files. Neither writing nor
reading needs TensorFlow.
"""

import contextlib
import fcntl
import glob
import io
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Int, UInt8

from dimo_jax.common.errors import InputError
from dimo_jax.common.files import is_remote

NUM_CLASSES = 10
NUM_EXAMPLES = {"train": 1400, "test": 397}
MAX_LEVEL = 16
_OWN_FILES = re.compile(r"dataset_info\.json|features\.json|digits-\w+\.array_record-\d+-of-\d+")
IMAGE_SHAPE = (8, 8, 1)

_CITATION = """@misc{alpaydin1998optical,
  author = {Alpaydin, Ethem and Kaynak, Cenk},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  publisher = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49}
}"""

_log = logging.getLogger(__name__)


class Images(NamedTuple):
    """Images with their labels, N of them."""

    images: Float[np.ndarray, "N 8 8 1"]  # float32 in [0, 1]; ink is bright
    labels: Int[np.ndarray, "N"]  # int32, the digit


class Digits(tfds.core.GeneratorBasedBuilder):
    """The data set in the form that tensorflow-datasets reads and writes."""

    VERSION = tfds.core.Version("1.0.0")

    # Where tfds would look for lists of checksums of downloads; there are none. Its own search
    # imports importlib_resources, which it installs only for Python 3.8 (tfds 4.9.10).
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 8x8 pixels with 17 gray levels.",
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation=_CITATION,
            # A plain tensor rather than features.Image, which wants TensorFlow to encode arrays and
            # would show levels up to 16 of 255 as black.
            features=tfds.features.FeaturesDict(
                {
                    "index": tfds.features.Scalar(dtype=np.int32),  # in scikit-learn's order
                    "levels": tfds.features.Tensor(shape=IMAGE_SHAPE, dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=NUM_CLASSES),
                }
            ),
            supervised_keys=("levels", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in NUM_EXAMPLES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        levels, labels = _source()
        for index in split_indices(labels)[split]:
            example = {"index": index, "levels": levels[index], "label": int(labels[index])}
            yield int(index), example


def split_indices(labels: Int[np.ndarray, "N"]) -> dict[str, Int[np.ndarray, "M"]]:
    """Return the fixed split, stratified by class.

    All examples are ranked by the raw 64-bit words of PCG64(0), which numpy keeps the same in every
    version (it does not promise that of Generator.permutation). Each class gives its lowest ranked
    examples to the test split: its share of 397, rounded down, and one more for the classes with
    the largest remainders (ties: the smaller digit).

    Args:
        labels: [1797] the class of every example.

    Returns:
        Ascending indices for "train" (1,400) and "test" (397).
    """
    rank = np.random.PCG64(0).random_raw(len(labels))
    # Integers throughout: whole shares and remainders are exact.
    share = np.bincount(labels, minlength=NUM_CLASSES) * NUM_EXAMPLES["test"]
    counts, remainders = share // len(labels), share % len(labels)
    extra = NUM_EXAMPLES["test"] - counts.sum()
    counts[np.argsort(-remainders, kind="stable")[:extra]] += 1
    is_test = np.zeros(len(labels), bool)
    for digit, count in enumerate(counts):
        members = np.flatnonzero(labels == digit)
        is_test[members[np.argsort(rank[members], kind="stable")[:count]]] = True
    return {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}


def load(split: str, data_dir: str | os.PathLike) -> Images:
    """Return the images of a split, generated on the first call and read from files ever after.

    The files appear under their final name in one rename, so a process killed while it writes them
    leaves nothing that would be read later, and several processes may call this at once. Files that
    cannot be read (a copy that broke off, a damaged disk) are generated again, with a warning.

    Args:
        split: "train" (1,400 images) or "test" (397).
        data_dir: parent directory of the data set; files go to <data_dir>/digits/1.0.0. They are
            read from a disk only: for gs://... they are made anew on this machine, and not kept.

    Returns:
        The images in scikit-learn's order.

    Raises:
        InputError: if there is no such split, data_dir cannot be written, or scikit-learn is
            missing.
    """
    if split not in NUM_EXAMPLES:
        raise InputError(f"the split is {split!r}, expected one of {list(NUM_EXAMPLES)}")
    if is_remote(data_dir):
        with tempfile.TemporaryDirectory() as here:
            return load(split, here)
    data_dir = os.path.expanduser(os.fspath(data_dir))
    files = folder_of(data_dir)
    try:
        if os.path.isdir(files):
            try:
                return _read(split, data_dir)
            # tfds, protobuf and array_record each raise types of their own here.
            except Exception as error:
                _refuse_foreign(files)
                _log.warning("%s cannot be read (%s): generating it again", files, error)
                shutil.rmtree(files)
        _generate(data_dir, files)
    except OSError as error:
        raise InputError(
            f"the digits cannot be written to data_dir {data_dir!r} ({error}): name a "
            "directory that can be written"
        ) from error
    return _read(split, data_dir)


def _refuse_foreign(folder: str) -> None:
    """Refuse to make anew what was not made here."""
    foreign = [name for name in os.listdir(folder) if not _OWN_FILES.fullmatch(name)]
    if foreign:
        raise InputError(
            f"{folder} holds {foreign[0]} and is no data set of this program; name another data_dir"
        )


def folder_of(data_dir: str | os.PathLike) -> str:
    """Return where the files of `load` lie, on a disk."""
    data_dir = os.path.expanduser(os.fspath(data_dir))
    return os.path.join(data_dir, "digits", str(Digits.VERSION))


def in_memory(split: str) -> Images:
    """Return the images of `load`, straight from scikit-learn: nothing is written.

    Args:
        split: "train" or "test".

    Raises:
        InputError: scikit-learn is missing.
    """
    levels, labels = _source()
    chosen = split_indices(labels)[split]
    return Images(levels[chosen].astype(np.float32) / MAX_LEVEL, labels[chosen].astype(np.int32))


def _source() -> tuple[UInt8[np.ndarray, "N 8 8 1"], Int[np.ndarray, "N"]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            'scikit-learn is missing, expected for its digits: run pip install -e ".[digits]"'
        ) from error
    levels, labels = load_digits(return_X_y=True)
    return levels.reshape(-1, 8, 8, 1).astype(np.uint8), labels


def _builder(data_dir: str) -> Digits:
    return Digits(data_dir=data_dir, file_format="array_record")


def _generate(data_dir: str, files: str) -> None:
    _source()  # first, so that a missing scikit-learn is reported before anything is written
    tfds.disable_progress_bar()
    _log.info("writing the digits to %s", files)
    with _only_writer(files):
        if os.path.isdir(files):
            return
        try:
            # What it prints announces a download of unknown size; there is none.
            with contextlib.redirect_stdout(io.StringIO()):
                _builder(data_dir).download_and_prepare()
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


def _read(split: str, data_dir: str) -> Images:
    # The types of tensorflow-datasets lose this method's arguments in a decorator.
    source = _builder(data_dir).as_data_source(split=split)  # pyright: ignore[reportCallIssue]
    examples = sorted(source.__getitems__(range(len(source))), key=lambda e: int(e["index"]))
    if len(examples) != NUM_EXAMPLES[split]:
        raise ValueError(f"{len(examples)} examples, expected {NUM_EXAMPLES[split]}")
    levels = np.stack([example["levels"] for example in examples])
    return Images(
        images=levels.astype(np.float32) / MAX_LEVEL,
        labels=np.asarray([example["label"] for example in examples], np.int32),
    )
