"""A token for each square patch: the nearest entry of a k-means codebook.

B batch, L patches in row-major order of their grid, K codes, P the patch's side, Q = P * C the
values of one row of a patch (C channels, interleaved).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dimo_jax.common.errors import InputError
from dimo_jax.common.trees import Tree
from dimo_jax.tokenizers.tokenizer import Images, Tokenizer, Tokens, check_shape, check_sizes

PATCH_SIZE = 2
# Of more patches than these k-means sees equal ones once: emoji are flat and have 58,000 distinct
# ones of 228,000, so it takes a third of the time, and rare ones are not averaged away.
MANY_PATCHES = 1 << 17


def split_patches(images: Images, patch_size: int) -> Float[Array, "B L P Q"]:
    """Cut images into patches that do not overlap.

    Args:
        images: [B, H, W, C]; patch_size divides H and W.
        patch_size: pixels along a side.

    Returns:
        [B, L, P, Q], row-major in the grid.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    split = jnp.asarray(images).reshape(batch, rows, patch_size, columns, patch_size * channels)
    return split.transpose(0, 1, 3, 2, 4).reshape(batch, rows * columns, patch_size, -1)


def build(
    *,
    image_size: int = 8,
    channels: int = 1,
    patch_size: int = PATCH_SIZE,
    codebook_size: int = 128,
) -> Tokenizer:
    """Return the tokenizer of square images by patches.

    Args:
        image_size: pixels along a side.
        channels: values for each pixel.
        patch_size: pixels along a patch's side; it divides image_size.
        codebook_size: K.

    Returns:
        A tokenizer whose parameters are {"codebook": [K, P, Q] float32}; see `fit`.

    Raises:
        InputError: if a size is not a positive integer, or the patches do not tile the image.
    """
    sizes = {
        "image_size": image_size,
        "channels": channels,
        "patch_size": patch_size,
        "codebook_size": codebook_size,
    }
    check_sizes("patches", **sizes)
    if image_size % patch_size:
        raise InputError(
            f"patch_size of 'patches' is {patch_size}, expected a divisor of image_size "
            f"{image_size}"
        )
    image_shape = (image_size, image_size, channels)
    side = image_size // patch_size
    code_shape = (patch_size, patch_size * channels)

    def init(key: Key[Array, ""]) -> Tree:
        return {"codebook": jax.random.uniform(key, (codebook_size, *code_shape), jnp.float32)}

    @jax.jit
    def encode(params: Tree, images: Images) -> Int[Array, "B L"]:
        check_shape("images", images.shape, image_shape)
        patches = split_patches(images, patch_size)
        # Differences rather than |x|^2 - 2 x.c + |c|^2: exact ties stay exact, so that argmin finds
        # the lowest index, and no matmul runs in bfloat16 on a TPU. jit fuses the large array away.
        offsets = patches[:, :, None] - params["codebook"][None, None]
        return jnp.sum(offsets**2, axis=(-2, -1)).argmin(-1).astype(jnp.int32)

    @jax.jit
    def decode(params: Tree, tokens: Tokens) -> Float[Array, "B H W C"]:
        check_shape("tokens", tokens.shape, (side**2,))
        codes = params["codebook"][jnp.clip(tokens, 0, codebook_size - 1)]  # [B, L, P, Q]
        grid = codes.reshape(-1, side, side, *code_shape).transpose(0, 1, 3, 2, 4)
        return jnp.clip(grid.reshape(-1, *image_shape), 0.0, 1.0)

    return Tokenizer(
        config={"name": "patches", **sizes},
        grid=(side, side),
        codebook_size=codebook_size,
        image_shape=image_shape,
        init=init,
        encode=encode,
        decode=decode,
    )


def fit(
    images: Images, num_codes: int, seed: int, patch_size: int = PATCH_SIZE
) -> dict[str, Float[Array, "K P Q"]]:
    """Learn the codebook by k-means over the patches of the images: all, or of many the distinct.

    Args:
        images: [N, H, W, C] in [0, 1].
        num_codes: K.
        seed: of k-means' starting points; the same seed and images give the same codebook.
        patch_size: pixels along a patch's side.

    Returns:
        {"codebook": [K, P, Q] float32}.

    Raises:
        InputError: if scikit-learn is missing, or the images have fewer distinct patches than
            codes.
    """
    try:
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise InputError(
            'scikit-learn is missing, expected for k-means: run pip install -e ".[digits]"'
        ) from error
    patches = np.asarray(split_patches(images, patch_size), np.float64)
    points = patches.reshape(-1, patches.shape[-2] * patches.shape[-1])
    distinct = np.unique(points, axis=0)
    if len(distinct) < num_codes:
        raise InputError(
            f"codebook_size is {num_codes}, expected at most {len(distinct)}, the number of "
            "distinct patches in these images: lower it"
        )
    points = distinct if len(points) > MANY_PATCHES else points
    # One thread: several add their partial sums in the order in which they finish, and the last
    # bits of the codebook, hence its fingerprint, would differ from run to run.
    with threadpool_limits(limits=1):
        # scikit-learn has no types: that of n_init is guessed from its default, "auto".
        means = KMeans(num_codes, n_init=1, random_state=seed)  # pyright: ignore[reportArgumentType]
        centers = means.fit(points).cluster_centers_
    return {"codebook": jnp.asarray(centers.reshape(-1, *patches.shape[-2:]), jnp.float32)}
