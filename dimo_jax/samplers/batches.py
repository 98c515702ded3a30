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
from jaxtyping import Array, Int, Key

from dimo_jax.common import rng
from dimo_jax.parallel import mesh


def in_batches(
    sample: Callable[[Key[Array, "B"], Any], Any],
    key: Key[Array, "..."],
    condition: Any,
    batch_size: int,
    first_index: int = 0,
) -> Any:
    """Call sample(keys, condition) on batches and joins what it returns.

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


def sampler(
    decode: Callable[..., Array],
    make_plan: Callable[[Any, int], Any],
    static: Callable[[Any], Any],
    needs_null: bool = True,
) -> Callable[..., Int[np.ndarray, "N L"]]:
    """Return the function that draws any number of images with one way of decoding.

    Args:
        decode: (apply, params, keys, condition, null_condition, settings, num_tokens, mask_id,
            plan) -> tokens [B, L], of one batch; without null_condition where that is not needed.
        make_plan: (settings, num_tokens) -> the arrays that the steps read.
        static: settings -> those that are compiled in. All that the plan says is taken out of
            them, so that a sweep over it compiles once.
        needs_null: whether decode takes a null_condition.

    Returns:
        sample(...) as described there, the same for every sampler.
    """
    # Once for each sampler: the second call with the same network and settings compiles nothing.
    compiled = jax.jit(decode, static_argnames=("apply", "settings", "num_tokens", "mask_id"))

    def sample(
        apply: Callable[..., Array],
        params: Any,
        key: Key[Array, "..."],
        condition: Any,
        null_condition: Any,
        settings: Any,
        num_tokens: int,
        mask_id: int,
        batch_size: int,
        first_index: int = 0,
    ) -> Int[np.ndarray, "N L"]:
        """Tokens of any number of images, decoded in batches.

        Args:
            apply: the network.
            params: its parameters.
            key: of the whole set; image i has fold_in(key, first_index + i), whatever its batch.
                Or [N], one for each image.
            condition: pytree of arrays with a leading axis N.
            null_condition: the same structure and shapes; not looked at by a sampler without
                guidance.
            settings: how a grid is decoded, of the sampler's own class.
            num_tokens: L.
            mask_id: the id of [MASK].
            batch_size: images in a batch; a network call has twice as many with guidance.
            first_index: the first image's index.

        Returns:
            [N, L] int32.

        Raises:
            InputError: the settings do not fit the number of tokens.
        """
        plan, fixed = make_plan(settings, num_tokens), static(settings)
        conditions = (condition, null_condition) if needs_null else (condition,)

        def draw(keys: Key[Array, "B"], batch: tuple) -> Int[Array, "B L"]:
            return compiled(apply, params, keys, *batch, fixed, num_tokens, mask_id, plan)

        return in_batches(draw, key, conditions, batch_size, first_index)

    return sample
