"""What a teacher is trained on: tokens, each with the number of its condition, by index."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# (which examples, which version of each) -> tokens and the numbers of their conditions
At = Callable[
    [Int[np.ndarray, "B"], Int[np.ndarray, "B"]],
    tuple[Int[np.ndarray, "B L"], Int[np.ndarray, "B"]],
]


class Examples(NamedTuple):
    """Encoded pictures of a training split.

    Attributes:
        num: of the examples.
        views: augmented versions of each; 1 is the picture alone.
        at: (indices in 0 .. num - 1, views in 0 .. views - 1) -> int32 tokens [B, L] and int32
            numbers of conditions [B].
        identity: what a training depends on besides its settings, where its pictures come from
            outside.
    """

    num: int
    views: int
    at: At
    identity: Mapping[str, str] = {}


def in_memory(tokens: Int[np.ndarray, "N L"], numbers: Int[np.ndarray, "N"]) -> Examples:
    """Return examples that are held in memory, the same on every process.

    Args:
        tokens: int32 [N, L].
        numbers: int32 [N], of their conditions.
    """
    return Examples(len(tokens), 1, lambda indices, _: (tokens[indices], numbers[indices]))
