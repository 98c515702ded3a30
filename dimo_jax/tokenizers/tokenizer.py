"""What every tokenizer is to the rest of the package.

B batch, H and W the image's sides, C channels, L tokens in row-major order of the grid.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Key

from dimo_jax.common.errors import InputError
from dimo_jax.common.trees import Tree

# Data sets hand over numpy arrays, networks hand over JAX arrays: a tokenizer takes both.
Images = Float[Array | np.ndarray, "B H W C"]
Tokens = Int[Array | np.ndarray, "B L"]


# Of the images that a decoder makes at a time: 1 of 1024 x 1024, 16 of 256 x 256. Its widest layers
# have 128 channels of as many float32, several of them at once: 3.5 GiB. (Two of 1024 x 1024 at a
# time took a CPU 51 s each, one 44.)
PIXELS_AT_ONCE = 1 << 20


# Compared and hashed by identity (eq=False): a config dict has no hash, and a tokenizer is to be
# usable as a static argument of jax.jit.
@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A pair of pure functions, and the sizes that other parts need to know.

    Attributes:
        config: plain values that rebuild this tokenizer.
        grid: (rows, columns) of tokens.
        codebook_size: token ids are 0 .. codebook_size - 1.
        image_shape: (H, W, C).
        init: key -> parameters, of the right shapes and dtypes but untrained.
        encode: (params, [B, H, W, C] float32 in [0, 1]) -> [B, L] int32.
        decode: (params, [B, L] int32) -> [B, H, W, C] float32 in [0, 1]. Ids past the codebook,
            such as the mask id, become its last one, as in MaskGit's own decoding.
    """

    config: dict[str, Any]
    grid: tuple[int, int]
    codebook_size: int
    image_shape: tuple[int, int, int]
    init: Callable[[Key[Array, ""]], Tree]
    encode: Callable[[Tree, Images], Int[Array, "B L"]]
    decode: Callable[[Tree, Tokens], Float[Array, "B H W C"]]

    @property
    def num_tokens(self) -> int:
        """L, the number of tokens of one image."""
        return self.grid[0] * self.grid[1]


def decode_in_chunks(
    tokenizer: Tokenizer, params: Tree, tokens: Tokens, chunk: int
) -> Float[np.ndarray, "B H W C"]:
    """Decode any number of images with the memory of `chunk`, or of fewer large ones.

    The result is that of one `decode` up to float rounding, whatever the chunk.

    Args:
        tokenizer: the tokenizer.
        params: its parameters.
        tokens: [B, L] ids; B may be anything, 0 too.
        chunk: images decoded at a time, at most and always as many, so that one program is
            compiled. Of large images it is fewer: PIXELS_AT_ONCE.

    Returns:
        float32 pixels in [0, 1], in the host's memory.

    Raises:
        InputError: if the chunk is not positive.
    """
    if chunk < 1:
        raise InputError(f"the decoder's chunk is {chunk} images, expected at least 1")
    tokens, num = np.asarray(tokens), len(tokens)
    images = np.empty((num, *tokenizer.image_shape), np.float32)
    for rows in chunks(tokenizer, num, chunk):
        decoded, start = tokenizer.decode(params, tokens[rows]), rows[0]
        images[start : start + len(rows)] = np.asarray(decoded)[: num - start]
    return images


def chunks(tokenizer: Tokenizer, num: int, chunk: int) -> list[Int[np.ndarray, "N"]]:
    """Return the images of each call of `decode_in_chunks`.

    Args:
        tokenizer: the tokenizer.
        num: of all images.
        chunk: see there.

    Returns:
        Rows of the tokens, always as many; the last ones repeat the last image, and the surplus is
        to be dropped.
    """
    chunk = min(chunk, max(1, PIXELS_AT_ONCE // math.prod(tokenizer.image_shape[:2])))
    return [np.minimum(np.arange(start, start + chunk), num - 1) for start in range(0, num, chunk)]


def check_sizes(name: str, **sizes: Any) -> None:
    """Raise InputError unless every size in a tokenizer's config is a positive integer."""
    for field, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(
                f"{field} of the tokenizer {name!r} is {value!r}, expected an int >= 1"
            )


def check_shape(what: str, found: tuple, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless the axes after the batch (an int, or jax.export's) are expected."""
    if tuple(found[1:]) != tuple(expected):
        raise ValueError(f"{what} have shape {tuple(found)}, expected (batch, *{tuple(expected)})")
