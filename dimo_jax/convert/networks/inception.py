"""The FID's Inception-v3: which tensor of its published files is which parameter.

The keys of pytorch-fid's .pth and of torch-fidelity's agree, and our tree has their names, so the
table is made of it.
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

_TORCH_NAMES = {"scale": "weight", "mean": "running_mean", "var": "running_var"}


@functools.cache
def entries() -> list[Entry]:
    """Return the table of the network: an entry for each of the 472 tensors, of any size."""
    tree = jax.eval_shape(inception.build().init, jax.random.key(0))
    return [_entry(path) for path in trees.named_leaves(tree)]


def _entry(path: str) -> Entry:
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
    channels = shape_of(state, "Conv2d_1a_3x3.conv.weight", 4)[0]
    num_logits = shape_of(state, "fc.weight", 2)[0]
    # A number of channels that is none of these will be refused with its tensors, by the table.
    divisor = next((n for n in inception.DIVISORS if 32 // n == channels), 1)
    return {"name": "inception", "num_logits": num_logits, "divisor": divisor}
