"""Handwritten digits: 1,797 real images of 8x8 pixels with 17 gray levels, offline.

They are the ones that scikit-learn carries, the test part of

    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49
"""

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int

from dimo_jax.common.errors import InputError
from dimo_jax.data.built_in import BuiltIn, Source

_CITATION = """@misc{alpaydin1998optical,
  author = {Alpaydin, Ethem and Kaynak, Cenk},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  publisher = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49}
}"""


class Digits(BuiltIn):
    """The data set; ink is bright, a label is the digit."""

    VERSION = tfds.core.Version("1.0.0")
    NUM_EXAMPLES = {"train": 1400, "test": 397}
    IMAGE_SHAPE = (8, 8, 1)
    MAX_LEVEL = 16
    NUM_CLASSES = 10
    KEY = "levels"
    NEEDS = {"sklearn": "scikit-learn"}
    ABOUT = {
        "description": "Handwritten digits of 8x8 pixels with 17 gray levels.",
        "homepage": "https://archive.ics.uci.edu/dataset/80",
        "citation": _CITATION,
    }

    @classmethod
    def source(cls) -> Source:
        """Return all digits, in scikit-learn's order.

        Raises:
            InputError: it is missing.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise InputError(
                'scikit-learn is missing, expected for its digits: run pip install -e ".[digits]"'
            ) from error
        levels, labels = load_digits(return_X_y=True)
        levels = levels.reshape(-1, *cls.IMAGE_SHAPE).astype(np.uint8)
        return Source(levels, labels, split_indices(labels))


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
    num_test = Digits.NUM_EXAMPLES["test"]
    rank = np.random.PCG64(0).random_raw(len(labels))
    # Integers throughout: whole shares and remainders are exact.
    share = np.bincount(labels, minlength=Digits.NUM_CLASSES) * num_test
    counts, remainders = share // len(labels), share % len(labels)
    extra = num_test - counts.sum()
    counts[np.argsort(-remainders, kind="stable")[:extra]] += 1
    is_test = np.zeros(len(labels), bool)
    for digit, count in enumerate(counts):
        members = np.flatnonzero(labels == digit)
        is_test[members[np.argsort(rank[members], kind="stable")[:count]]] = True
    return {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}
