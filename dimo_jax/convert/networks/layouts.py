"""One table for each network: which PyTorch tensor is which leaf, readable in both directions.

A table is a list of `Entry`. `to_params` reads a state dict by it, `to_state` writes one, and both
are exact: a layout only moves values, so a round trip gives the same bits.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.common.trees import Tree

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a state dict.

    Attributes:
        key: its name there.
        paths: the leaves of our tree that it holds, such as ("block_0", "mlp_in", "kernel").
        split: the tensor -> one array for each path.
        join: those arrays -> the tensor.
        same_as: another key that this one repeats (a tied weight): it is compared when reading,
            written again when writing, and has no paths.
    """

    key: str
    paths: tuple[Path, ...] = ()
    split: Callable[[np.ndarray], Sequence[np.ndarray]] = lambda x: (x,)
    join: Callable[[Sequence[np.ndarray]], np.ndarray] = lambda xs: xs[0]
    same_as: str | None = None


def same(key: str, path: str) -> Entry:
    """Return a tensor that is stored alike in both; `path` is written with slashes."""
    return Entry(key, (_path(path),))


def permuted(key: str, path: str, axes: Sequence[int]) -> Entry:
    """Return a tensor whose axes are permuted: leaf = tensor.transpose(axes)."""
    back = tuple(np.argsort(axes))
    return Entry(
        key,
        (_path(path),),
        lambda x: (x.transpose(axes),),
        lambda xs: xs[0].transpose(back),
    )


def reshaped(key: str, path: str, leaf_shape: Sequence[int], shape: Sequence[int]) -> Entry:
    """Return a tensor of `shape` whose leaf has the same values in the order of `leaf_shape`."""
    leaf_shape, shape = tuple(leaf_shape), tuple(shape)
    return Entry(
        key,
        (_path(path),),
        # A tensor of another shape keeps it, so that the comparison of shapes names it.
        lambda x: (x.reshape(leaf_shape) if x.shape == shape else x,),
        lambda xs: xs[0].reshape(shape),
    )


def linear(prefix: str, path: str, bias: bool = True) -> list[Entry]:
    """torch.nn.Linear (out, in) as a Dense kernel (in, out), with its bias."""
    entries = [permuted(f"{prefix}.weight", f"{path}/kernel", (1, 0))]
    return entries + ([same(f"{prefix}.bias", f"{path}/bias")] if bias else [])


def conv(prefix: str, path: str, bias: bool = True) -> list[Entry]:
    """torch.nn.Conv2d (O, I, kh, kw) as a kernel (kh, kw, I, O), with its bias."""
    entries = [permuted(f"{prefix}.weight", f"{path}/kernel", (2, 3, 1, 0))]
    return entries + ([same(f"{prefix}.bias", f"{path}/bias")] if bias else [])


def norm(prefix: str, path: str, bias: bool = True) -> list[Entry]:
    """torch.nn.LayerNorm or GroupNorm: its weight is Flax's scale."""
    entries = [same(f"{prefix}.weight", f"{path}/scale")]
    return entries + ([same(f"{prefix}.bias", f"{path}/bias")] if bias else [])


def residual(prefix: str, path: str, shortcut: str | None = None) -> list[Entry]:
    """Return a residual block of Taming's kind: two norms, two convolutions.

    Args:
        prefix: of its tensors.
        path: of its leaves.
        shortcut: what the convolution is called that changes the width; None: there is none.
    """
    table = []
    for i in (1, 2):
        table += norm(f"{prefix}.norm{i}", f"{path}/norm{i}")
        table += conv(f"{prefix}.conv{i}", f"{path}/conv{i}")
    return table + (conv(f"{prefix}.{shortcut}", f"{path}/shortcut_conv") if shortcut else [])


def attention(prefix: str, path: str, heads: int) -> list[Entry]:
    """torch.nn.MultiheadAttention as Flax's MultiHeadDotProductAttention.

    The rows of in_proj are those of query, key and value, in this order: leaves [D, heads, D/heads]
    and [heads, D/heads]. out_proj (D, D) becomes [heads, D/heads, D].
    """
    names = ("query", "key", "value")
    return [
        Entry(
            f"{prefix}.in_proj_weight",
            tuple(_path(f"{path}/{name}/kernel") for name in names),
            lambda x: [block.T.reshape(x.shape[1], heads, -1) for block in np.split(x, 3)],
            lambda xs: np.concatenate([x.reshape(x.shape[0], -1).T for x in xs]),
        ),
        Entry(
            f"{prefix}.in_proj_bias",
            tuple(_path(f"{path}/{name}/bias") for name in names),
            lambda x: [block.reshape(heads, -1) for block in np.split(x, 3)],
            lambda xs: np.concatenate([x.reshape(-1) for x in xs]),
        ),
        Entry(
            f"{prefix}.out_proj.weight",
            (_path(f"{path}/out/kernel"),),
            lambda x: (x.T.reshape(heads, -1, x.shape[0]),),
            lambda xs: xs[0].reshape(-1, xs[0].shape[-1]).T,
        ),
        same(f"{prefix}.out_proj.bias", f"{path}/out/bias"),
    ]


def shape_of(state: Mapping[str, Any], key: str, rank: int) -> tuple[int, ...]:
    """Return the shape of a tensor that a network's sizes are read from.

    Args:
        state: a state dict; nothing but shapes is looked at.
        key: the tensor.
        rank: how many axes it must have.

    Returns:
        Its shape.

    Raises:
        InputError: if it is missing or has another number of axes.
    """
    if key not in state:
        raise InputError(f"{key} is missing; the sizes of the network are read from it")
    shape = tuple(state[key].shape)
    if len(shape) != rank or 0 in shape:
        raise InputError(f"{key} is {shape}, expected {rank} axes, none of them empty")
    return shape


def count_layers(state: Iterable[str], prefix: str) -> int:
    """Count the layers of a state dict: one more than the greatest number after `prefix`.

    Raises:
        InputError: that number is greater than there are keys.
    """
    keys = list(state)
    numbers = [key[len(prefix) :].partition(".")[0] for key in keys if key.startswith(prefix)]
    return count_numbered((x for x in numbers if x.isdecimal()), len(keys), prefix)


def count_numbered(numbers: Iterable[str], num_keys: int, what: str) -> int:
    """Count what is numbered from 0 in a file's keys.

    Args:
        numbers: decimal digits out of the keys.
        num_keys: of the file, which cannot have more layers.
        what: for the message.

    Raises:
        InputError: a number is greater than that.
    """
    most = max(numbers, key=lambda x: (len(x), x), default="-1")
    if len(most) > 9 or int(most) >= num_keys:
        raise InputError(f"{what} is numbered up to {shown(most)} in {num_keys} tensors")
    return 1 + int(most)


def _path(path: str) -> Path:
    return tuple(path.split("/"))


def _leaf(tree: Tree, path: Path) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def state_shapes(entries: Iterable[Entry], params: Tree) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the state dict that a table makes of parameters; reads no value.

    Args:
        entries: the table.
        params: our tree; leaves need a shape only (jax.eval_shape's result will do).

    Returns:
        {key: shape}.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    entries = list(entries)
    for entry in entries:
        if entry.same_as is None:
            # Broadcast from one zero: an array of any shape without its memory.
            leaves = [np.broadcast_to(np.int8(0), _leaf(params, p).shape) for p in entry.paths]
            shapes[entry.key] = entry.join(leaves).shape
    return shapes | {e.key: shapes[e.same_as] for e in entries if e.same_as is not None}


def to_params(
    entries: Iterable[Entry],
    state: Mapping[str, np.ndarray],
    like: Tree,
    release: Callable[[np.ndarray], None] = lambda tensor: None,
) -> Tree:
    """Our parameters from a state dict, strictly.

    Args:
        entries: the network's table.
        state: {key: array}; nothing in it may be left over.
        like: our tree with shapes and dtypes (jax.eval_shape of the network's init).
        release: called with each tensor when its values are copied, or else only looked at later.

    Returns:
        Nested dicts of arrays in the dtypes of `like`.

    Raises:
        InputError: keys are missing or unknown, shapes differ, or a tied weight is not tied; one
            message lists all differences.
    """
    entries = list(entries)
    expected = state_shapes(entries, like)
    wrong = [f"{key} is missing" for key in expected if key not in state]
    wrong += [f"{shown(key)} is unknown" for key in state if key not in expected]
    wrong += [
        f"{key} is {tuple(state[key].shape)}, expected {shape}"
        for key, shape in expected.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    # NumPy would drop the imaginary part, and read text as numbers. "V" are bfloat16 and float8.
    wrong += [
        f"{key} is of {state[key].dtype}, expected real numbers"
        for key in expected
        if key in state and (state[key].dtype.kind not in "biufV" or state[key].dtype.names)
    ]
    if not wrong:
        wrong = [
            f"{entry.key} differs from {entry.same_as}, which it should repeat"
            for entry in entries
            if entry.same_as is not None
            and not np.array_equal(state[entry.key], state[entry.same_as])
        ]
    if wrong:
        raise InputError("; ".join(wrong))
    params: dict[str, Any] = {}
    for entry in entries:
        if entry.same_as is not None:
            continue
        for path, value in zip(entry.paths, entry.split(state[entry.key]), strict=True):
            inner = params
            for name in path[:-1]:
                inner = inner.setdefault(name, {})
            dtype = _leaf(like, path).dtype
            inner[path[-1]] = np.ascontiguousarray(value, dtype=dtype)
        release(state[entry.key])
    return params


def to_state(entries: Iterable[Entry], params: Tree) -> dict[str, np.ndarray]:
    """Return a state dict from our parameters: the inverse of `to_params`.

    Args:
        entries: the network's table.
        params: nested dicts of arrays.

    Returns:
        {key: array} in the table's order.
    """
    state: dict[str, np.ndarray] = {}
    for entry in entries:
        if entry.same_as is not None:
            state[entry.key] = state[entry.same_as]
            continue
        joined = entry.join([np.asarray(_leaf(params, path)) for path in entry.paths])
        state[entry.key] = np.ascontiguousarray(joined)
    return state
