"""Class labels as conditions. The label num_classes means "no condition".

Axes: B batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key


def draw(keys: Key[Array, "B"], num_classes: int) -> Int[Array, "B"]:
    """A class for each example, uniformly.

    Args:
        keys: [B].
        num_classes: labels are 0 .. num_classes - 1.

    Returns:
        [B] int32.

    Source: Di[M]O section 5, classes uniform.
    """
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_classes))(keys)


def null(batch_size: int, num_classes: int) -> Int[Array, "B"]:
    """The label of the unconditional branch, [B] int32."""
    return jnp.full((batch_size,), num_classes, jnp.int32)
