"""Random keys as functions of (seed, stream name, step, global example index).

No key is ever stored: a resumed run, or the same run on another number of devices, draws the same
numbers because it asks for them by the same four coordinates.
"""

import zlib

import jax
from jaxtyping import Array, Int, Key

# Any scalar that may be traced under jit.
Scalar = int | Int[Array, ""]


def stream_key(seed: Scalar, stream: str, step: Scalar = 0) -> Key[Array, ""]:
    """Key of one named stream at one step.

    Args:
        seed: the run's seed.
        stream: any name, e.g. "generator_sample"; different names give independent streams.
        step: the training step, or any other counter.

    Returns:
        A typed scalar key.
    """
    # crc32 rather than hash(): Python salts the latter, so it differs from process to process.
    name_id = zlib.crc32(stream.encode()) & 0x7FFFFFFF
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), name_id), step)


def example_keys(key: Key[Array, ""], index: Int[Array, "B"]) -> Key[Array, "B"]:
    """Return one key for each example, from its index in the global batch.

    Args:
        key: the key of the stream at this step.
        index: [B] global example indices.

    Returns:
        [B] typed keys; equal indices give equal keys whatever the batch they stand in.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
