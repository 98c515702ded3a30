"""The FID's Inception-v3: which tensor of its published files is which parameter.

Two files hold the same numbers: the .pth of pytorch-fid and torch-fidelity, whose keys agree, and
the pickled dict of the JAX ports. Our tree has the names of both, so the tables are made of it.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from dimo_jax.common import trees
from dimo_jax.convert.networks.layouts import Entry, permuted, same, shape_of
from dimo_jax.models import inception

# How many batches the statistics were averaged over: PyTorch's own, in newer files only.
IGNORED = (r"\.num_batches_tracked$",)

_FIRST, _FIRST_PICKLED = "Conv2d_1a_3x3.conv.weight", "Conv2d_1a_3x3/conv/kernel"
_TORCH_NAMES = {"scale": "weight", "mean": "running_mean", "var": "running_var"}


def is_pickled(state: Mapping[str, Any]) -> bool:
    """Return whether a state has the paths of the JAX ports' dict, rather than PyTorch's keys."""
    return _FIRST_PICKLED in state


def entries(pickled: bool) -> list[Entry]:
    """Return the table of the network.

    Args:
        pickled: as `is_pickled` tells.

    Returns:
        One entry for each of the 472 tensors.
    """
    return [same(path, path) if pickled else _from_torch(path) for path in _paths()]


@functools.cache
def _paths() -> tuple[str, ...]:
    """Return every parameter's path, the same for networks of any size."""
    tree = jax.eval_shape(inception.build().init, jax.random.key(0))
    return tuple(trees.named_leaves(tree))


def _from_torch(path: str) -> Entry:
    prefix, _, leaf = path.replace("/", ".").rpartition(".")
    if leaf == "kernel":
        axes = (1, 0) if prefix == "fc" else (2, 3, 1, 0)
        return permuted(f"{prefix}.weight", path, axes)
    return same(f"{prefix}.{_TORCH_NAMES.get(leaf, leaf)}", path)


def config_from(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the network's config, read from the shapes.

    Args:
        state: {key: anything with a shape}; other keys do not disturb.

    Returns:
        What models.build takes.

    Raises:
        InputError: a tensor that tells a size is missing or has other axes.
    """
    if is_pickled(state):
        channels = shape_of(state, _FIRST_PICKLED, 4)[3]
        num_logits = shape_of(state, "fc/kernel", 2)[1]
    else:
        channels = shape_of(state, _FIRST, 4)[0]
        num_logits = shape_of(state, "fc.weight", 2)[0]
    # A number of channels that is none of these will be refused with its tensors, by the table.
    divisor = next((n for n in inception.DIVISORS if 32 // n == channels), 1)
    return {"name": "inception", "num_logits": num_logits, "divisor": divisor}
