"""Sampling any number of images in batches of one size, each image on its own key.

Axes: B batch, N images.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from dimo_jax.common import rng
from dimo_jax.parallel import mesh


def in_batches(
    sample: Callable[[Key[Array, "B"], Any], Any],
    key: Key[Array, "..."],
    condition: Any,
    batch_size: int,
    first_index: int = 0,
) -> Any:
    """Call sample(keys, condition) on batches and join what it returns.

    Image i has the key fold_in(key, first_index + i): it does not depend on the batch it stands in,
    and the images from first_index on are those of one longer call.

    Args:
        sample: for B = batch_size always, so that a jitted function compiles once.
        key: of the whole set; or [N], one for each image, and first_index counts for nothing.
        condition: pytree of arrays with a leading axis N.
        batch_size: B; smaller N are filled up to it, and the surplus dropped. A batch is spread
            over this process's devices where they divide it.
        first_index: the first image's index.

    Returns:
        What `sample` returns, as NumPy arrays with a leading axis N.
    """
    num = len(jax.tree.leaves(condition)[0])
    # Each process draws its own images: they are spread over its own devices only.
    spread = NamedSharding(mesh.of_this_process(batch_size), PartitionSpec("data"))
    # On one device the arrays lie where they belong already.
    place = functools.partial(jax.device_put, device=spread) if spread.num_devices > 1 else tuple
    parts = []
    for start in range(0, num, batch_size):
        # The last batch repeats the last image instead of tracing another shape.
        rows = np.minimum(np.arange(start, start + batch_size), num - 1)
        index = jnp.asarray(first_index + rows, jnp.int32)
        keys = key[rows] if key.ndim else rng.example_keys(key, index)
        batch = jax.tree.map(lambda c, rows=rows: jnp.asarray(c[rows]), condition)
        parts.append(sample(*place((keys, batch))))
    return jax.tree.map(lambda *x: np.concatenate([np.asarray(a) for a in x])[:num], *parts)
