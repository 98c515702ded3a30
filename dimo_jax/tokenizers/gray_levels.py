"""A token for each pixel: its gray level. Nothing is learned and nothing is lost.

B batch, L tokens in row-major order of the pixels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dimo_jax.common.errors import InputError
from dimo_jax.common.trees import Tree
from dimo_jax.tokenizers.tokenizer import Images, Tokenizer, Tokens, check_shape, check_sizes


def build(*, image_size: int = 8, num_levels: int = 17) -> Tokenizer:
    """Return the tokenizer of square gray images with evenly spaced levels.

    Args:
        image_size: pixels along a side; there are image_size ** 2 tokens.
        num_levels: the codebook size; id k is the gray value k / (num_levels - 1). The default is
            that of scikit-learn's digits, whose pixels count 0 .. 16 dark dots of a 4x4 block.

    Returns:
        A tokenizer whose parameters are the empty dict.

    Raises:
        InputError: if a size is not a positive integer, or there are fewer than two levels.
    """
    check_sizes("gray_levels", image_size=image_size, num_levels=num_levels)
    if num_levels < 2:
        raise InputError(f"num_levels of 'gray_levels' is {num_levels}, expected at least 2")
    image_shape = (image_size, image_size, 1)
    top = num_levels - 1

    def init(key: Key[Array, ""]) -> Tree:
        return {}

    @jax.jit
    def encode(params: Tree, images: Images) -> Int[Array, "B L"]:
        check_shape("images", images.shape, image_shape)
        levels = jnp.clip(jnp.round(images * top), 0, top)
        return levels.astype(jnp.int32).reshape(images.shape[0], -1)

    @jax.jit
    def decode(params: Tree, tokens: Tokens) -> Float[Array, "B H W C"]:
        check_shape("tokens", tokens.shape, (image_size**2,))
        levels = jnp.clip(tokens, 0, top).astype(jnp.float32)
        return (levels / top).reshape(-1, *image_shape)

    return Tokenizer(
        config={"name": "gray_levels", "image_size": image_size, "num_levels": num_levels},
        grid=(image_size, image_size),
        codebook_size=num_levels,
        image_shape=image_shape,
        init=init,
        encode=encode,
        decode=decode,
    )
