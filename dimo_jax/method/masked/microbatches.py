"""A large batch computed in parts, one after the other, with the sums of the whole.

Axes: B batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def in_parts(function: Callable[[Any], tuple[Any, Any]], parts: int, examples: Any) -> Any:
    """function(examples), with no more than 1/parts of the batch in memory at once.

    Args:
        function: examples -> (sums, rest). `sums` is a pytree of sums over examples, each weighted
            as in the whole batch; `rest` a pytree with the leading axis of the examples.
        parts: must divide B; 1 calls the function once.
        examples: pytree with the leading axis B.

    Returns:
        (sums, rest) of the whole batch; only the order of summation differs from one call.
    """
    if parts == 1:
        return function(examples)

    # Part m takes the examples m, m + parts, ...: where B is spread over devices, each of them
    # then holds its share of every part, and nothing moves between them.
    def split(x: Any) -> Any:
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def join(x: Any) -> Any:
        return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    divided = jax.tree.map(split, examples)
    shapes, _ = jax.eval_shape(function, jax.tree.map(lambda x: x[0], divided))

    def add(total: Any, part: Any) -> tuple[Any, Any]:
        sums, rest = function(part)
        return jax.tree.map(jnp.add, total, sums), rest

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, rest = jax.lax.scan(add, zero, divided)
    return total, jax.tree.map(join, rest)
