"""What the training steps are given: data's tokens, or conditions and nothing else.

Axes: B batch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dimo_jax.data import stream
from dimo_jax.data.examples import Examples
from dimo_jax.method.dimo import distill_state
from dimo_jax.method.masked import pretrain
from dimo_jax.parallel import mesh
from dimo_jax.parallel.sharding import Layout
from dimo_jax.training import programs

Config = Mapping[str, Any]


def of_data(
    config: Config,
    stage: str,
    layout: Layout,
    examples: Examples,
    conditions: programs.DataConditions,
) -> Callable[[int], pretrain.PretrainBatch]:
    """Return the batch of every step that learns from data's tokens.

    Args:
        config: a complete config.
        stage: "pretrain", or "distill" of a method that takes data.
        layout: the mesh and its rules.
        examples: the training split.
        conditions: of the examples' numbers.

    Returns:
        number of the step -> batch on the mesh, the same whatever the number of processes. A
        process reads what its own devices hold.
    """
    seed, size = config["seed"], config[stage]["batch_size"]
    constants = mesh.put(
        (np.arange(size, dtype=np.int32), conditions.null(size)),
        layout.batch,
    )
    held = layout.batch.addressable_devices_indices_map((size,)).values()
    own = np.unique(np.concatenate([np.arange(size)[some] for some in held]))

    def batch_of(number: int) -> pretrain.PretrainBatch:
        chosen = stream.batch_indices(seed, number, size, examples.num)
        views = stream.batch_views(seed, number, chosen, examples.num, examples.views)
        tokens, numbers = examples.at(chosen[own], views[own])

        def placed(found: np.ndarray) -> jax.Array:
            def rows(*some: slice) -> np.ndarray:
                start, stop, _ = some[0].indices(size)
                first = np.searchsorted(own, start)
                return found[first : first + stop - start]

            return mesh.from_rows((size, *found.shape[1:]), layout.batch, rows)

        tokens, condition = jax.tree.map(placed, (tokens, conditions.features(numbers)))
        return pretrain.PretrainBatch(np.int32(seed), constants[0], tokens, condition, constants[1])

    return batch_of


def of_conditions(
    config: Config, conditions: programs.Conditions, layout: Layout
) -> Callable[[int], distill_state.DistillBatch]:
    """Return the batch of every distillation step: conditions, nothing else.

    Args:
        config: a complete config.
        conditions: what the run is conditioned on.
        layout: the mesh and its rules.

    Returns:
        number of the step -> batch on the mesh, the same whatever the number of processes.
    """
    seed, size = config["seed"], config["distill"]["batch_size"]
    index = mesh.put(np.arange(size, dtype=np.int32), layout.batch)
    of_step = conditions.batches(seed, size, programs.fresh_updates(config), layout)
    return lambda number: distill_state.DistillBatch(np.int32(seed), index, *of_step(number))
