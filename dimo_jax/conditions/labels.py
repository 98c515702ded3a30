"""Class labels as conditions. The label num_classes means "no condition".

Axes: B batch, K auxiliary updates a step, N examples.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from dimo_jax.common import rng
from dimo_jax.parallel import mesh
from dimo_jax.parallel.sharding import Layout


def draw(
    keys: Key[Array, "B"], num_classes: int, shares: Sequence[float | int] = ()
) -> Int[Array, "B"]:
    """Return a class for each example, uniformly or by shares.

    Args:
        keys: [B].
        num_classes: labels are 0 .. num_classes - 1.
        shares: of each class, in any unit; none: uniformly.

    Returns:
        [B] int32.

    Source: Di[M]O section 5, classes uniform.
    """
    if shares:
        logits = jnp.log(jnp.asarray(shares, jnp.float32))
        return jax.vmap(lambda key: jax.random.categorical(key, logits))(keys).astype(jnp.int32)
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_classes))(keys)


def in_turn(num: int, num_classes: int, shares: Sequence[float | int] = ()) -> Int[np.ndarray, "N"]:
    """Return labels in rounds, 0, 1, ..., as many of each class as can be, or as its share of them.

    Args:
        num: N.
        num_classes: labels are 0 .. num_classes - 1.
        shares: of each class, in any unit; none: equal ones. What is left after rounding down goes
            to the largest remainders, of equal ones to the smaller label.

    Returns:
        [N] int32. A class that has no more of its own leaves the rounds: equal shares give
        0, 1, ..., K - 1, 0, 1, ...
    """
    weights = np.asarray(shares or (1,) * num_classes, np.float64)
    quota = num * weights / weights.sum()
    counts = np.floor(quota).astype(int)
    counts[np.argsort(counts - quota, kind="stable")[: num - counts.sum()]] += 1
    found = np.repeat(np.arange(num_classes, dtype=np.int32), counts)
    rounds = np.arange(num) - np.repeat(np.cumsum(counts) - counts, counts)
    return found[np.argsort(rounds, kind="stable")]


def null(batch_size: int, num_classes: int) -> Int[np.ndarray, "B"]:
    """Return the label of the unconditional branch, [B] int32."""
    return np.full((batch_size,), num_classes, np.int32)


@dataclasses.dataclass(frozen=True)
class LabelConditions:
    """Classes: what a run with labels is conditioned on.

    Attributes:
        num: of the classes.
        shares: of each class in what is drawn, in any unit; none: uniform.
    """

    num: int
    shares: tuple[int, ...] = ()

    def identity(self) -> dict[str, str]:
        """Return what a training depends on besides its settings: nothing."""
        return {}

    def features(self, numbers: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
        """Return what the network is given for some labels: themselves."""
        return np.asarray(numbers, np.int32)

    def null(self, size: int) -> Int[np.ndarray, "N"]:
        """Return what it is given for no condition."""
        return null(size, self.num)

    def fill_cache(self) -> None:
        """Do nothing: labels are their own features."""

    def batches(
        self, seed: int, size: int, updates: int, layout: Layout
    ) -> Callable[[int], tuple[Any, Any, Any]]:
        """Return the conditions of every distillation step.

        Args:
            seed: of the run.
            size: B.
            updates: K, of the auxiliary, each with labels of its own; 0 where it has the
                generator's.
            layout: the mesh.

        Returns:
            number of the step -> (generator's [B], auxiliary's [K, B] or None, null [B]) on the
            mesh, the same whatever the number of processes.
        """
        index, empty = mesh.put((np.arange(size, dtype=np.int32), self.null(size)), layout.batch)

        def drawn(number: Int[Array, ""], index: Int[Array, "B"]) -> tuple[Any, Any]:
            def of(name: str) -> Any:
                keys = rng.example_keys(rng.stream_key(seed, name, number), index)
                return draw(keys, self.num, self.shares)

            several = [of(f"aux{k}_condition") for k in range(updates)]
            return of("generator_condition"), jnp.stack(several) if several else None

        conditions = jax.jit(drawn, out_shardings=(layout.batch, layout.stacked))
        return lambda number: (*conditions(np.int32(number), index), empty)
