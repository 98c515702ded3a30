"""Attention of all transformers: XLA's products anywhere, and a fused kernel where one applies.

Axes: B batch, N positions, H heads, d channels of a head.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from dimo_jax.common.errors import InputError
from dimo_jax.models import attention_kernel
from dimo_jax.models.layers import Projection
from dimo_jax.models.network import Compute

AttentionFn = Callable[..., Float[Array, "B N H d"]]
# The fused attention of an accelerator: what `auto` takes there.
FUSED = {"tpu": "pallas", "nvidia": "cudnn"}
NEEDS = {"pallas": "a TPU", "cudnn": "an NVIDIA GPU of compute capability 8.0 or higher"}


class SelfAttention(nn.Module):
    """Flax's MultiHeadDotProductAttention of a sequence with itself, with the same parameters."""

    heads: int
    dropout: float
    attention: AttentionFn

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], deterministic: bool) -> Float[Array, "B N D"]:
        """Attend; dropout acts on the probabilities."""
        batch, length, width = x.shape
        sizes = (self.heads, width // self.heads)
        rows = x.reshape(-1, width)
        parts = (
            Projection((width, *sizes), sizes, name=name)(rows, (batch, length))
            for name in ("query", "key", "value")
        )
        on = self.dropout > 0 and not deterministic
        y = self.attention(
            *(part.reshape(batch, length, *sizes) for part in parts),
            dropout_rng=self.make_rng("dropout") if on else None,
            dropout_rate=self.dropout,
            deterministic=not on,
        )
        out = Projection((*sizes, width), (width,), name="out")
        return out(y.reshape(-1, width), (batch, length))


def attention_fn(compute: Compute) -> AttentionFn:
    """Return the attention of a run, for `SelfAttention` and on its own.

    Args:
        compute: its `attention`, `dtype` and `mesh` choose. "xla" runs anywhere; "cudnn" (NVIDIA)
            and "pallas" (TPU) are fused kernels in bfloat16 without dropout on the probabilities;
            "auto" takes the fused one where it applies, else "xla".

    Returns:
        (query, key, value [B, N, H, d], dropout_rng, dropout_rate, deterministic) -> [B, N, H, d].
        It raises InputError where the one that is named does not apply.

    Source: Vaswani et al., arXiv 1706.03762, equation 1.
    """

    def run(
        query: Float[Array, "B N H d"],
        key: Float[Array, "B N H d"],
        value: Float[Array, "B N H d"],
        dropout_rng: Any = None,
        dropout_rate: float = 0.0,
        deterministic: bool = True,
    ) -> Float[Array, "B N H d"]:
        dropout = 0.0 if deterministic else dropout_rate
        name = chosen(compute, query, dropout)
        if name == "cudnn":
            return _cudnn(query, key, value)
        if name == "pallas":
            return _on_each_device(compute, attention_kernel.attend)(query, key, value)
        return _xla(query, key, value, dropout_rng, dropout)

    return run


def attention_of(module: nn.Module) -> AttentionFn:
    """Return the attention of a network, which has a `compute`.

    Its parameters are made in float32 from one example, which no fused kernel takes.
    """
    return attention_fn(Compute() if module.is_initializing() else module.compute)


def accelerator(mesh: Any) -> str:
    """Return "tpu", "nvidia" (of compute capability 8.0 or higher) or "" for another device.

    Args:
        mesh: of devices that may be absent; None: this process's own.
    """
    device = _device(mesh)
    if device.platform == "tpu":
        return "tpu"
    # A GPU of another maker has no such number, or a name such as gfx90a.
    capability = str(getattr(device, "compute_capability", ""))
    number = capability.replace(".", "", 1)
    return "nvidia" if number.isdigit() and float(capability) >= 8 else ""


def _device(mesh: Any) -> Any:
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def chosen(compute: Compute, query: Array, dropout: float) -> str:
    """Return the name of the attention to run; raise InputError where the one named cannot."""
    found = accelerator(compute.mesh)
    name = FUSED.get(found, "xla") if compute.attention == "auto" else compute.attention
    if name == "xla":
        return name
    lacking = []
    if FUSED.get(found) != name:
        lacking.append(f"a device of the kind {_device(compute.mesh).device_kind}")
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        lacking.append(f"config.compute_dtype={query.dtype}")
    if dropout:
        lacking.append("dropout in training")
    batch, _, _, width = query.shape
    if name == "cudnn" and (width % 8 or width > 128):
        lacking.append(f"heads of {width} channels, not a multiple of 8 up to 128")
    devices = jax.local_device_count() if compute.mesh is None else compute.mesh.size
    # Neither can a batch that is not spread over the devices, nor one that nobody says how.
    if name == "pallas" and (batch % devices or (compute.mesh is None and devices > 1)):
        lacking.append(f"a batch of {batch} on {devices} devices")
    if not lacking:
        return name
    if compute.attention == "auto":
        return "xla"
    raise InputError(
        f"config.attention={name} needs {NEEDS[name]}, config.compute_dtype=bfloat16 and no "
        f"dropout on attention; found {', '.join(lacking)}; give --config.attention=auto"
    )


def _on_each_device(compute: Compute, function: Callable[..., Any]) -> AttentionFn:
    """Return the function on each device's share of the batch: XLA cannot divide a kernel."""
    if compute.mesh is None:
        return function
    share = PartitionSpec(compute.mesh.axis_names)
    return jax.shard_map(
        function, mesh=compute.mesh, in_specs=share, out_specs=share, check_vma=False
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax(x: Float[Array, "*S"], dtype: Any) -> Float[Array, "*S"]:
    """jax.nn.softmax over the last axis in float32, rounded to a dtype."""
    return jax.nn.softmax(x.astype(jnp.float32)).astype(dtype)


def _pull_back(dtype: Any, probs: Array, ct: Array) -> tuple[Array]:
    # As JAX transposes it XLA's CPU backend takes twice as long (jax 0.10). What is kept for it is
    # rounded too: float32 probabilities are the largest arrays of a network in bfloat16.
    probs, ct = probs.astype(jnp.float32), ct.astype(jnp.float32)
    return ((probs * (ct - (ct * probs).sum(-1, keepdims=True))).astype(dtype),)


def _keep(x: Array, dtype: Any) -> tuple[Any, Any]:
    probs = _softmax(x, dtype)
    return probs, probs


_softmax.defvjp(_keep, _pull_back)


def _xla(
    query: Float[Array, "B N H d"],
    key: Float[Array, "B N H d"],
    value: Float[Array, "B N H d"],
    dropout_rng: Any,
    dropout: float,
) -> Float[Array, "B N H d"]:
    """softmax(q k / sqrt(d)) v: the softmax in float32, the products in the arguments' dtype."""
    # Heads before positions, written out: on the order "B N H d" XLA's CPU backend does the two
    # products element by element, three times as slowly (jax 0.10).
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    scores = jnp.einsum("bhqd,bhkd->bhqk", query / math.sqrt(query.shape[-1]), key)
    probs: Any = _softmax(scores, value.dtype)
    if dropout:
        kept = jax.random.bernoulli(dropout_rng, 1 - dropout, probs.shape)
        probs = jnp.where(kept, probs / (1 - dropout), 0)
    return jnp.einsum("bhqk,bhkd->bhqd", probs, value).swapaxes(1, 2)


def _cudnn(
    query: Float[Array, "B N H d"],
    key: Float[Array, "B N H d"],
    value: Float[Array, "B N H d"],
) -> Float[Array, "B N H d"]:
    batch, length = query.shape[:2]
    fused = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    if length % 2 == 0:
        return fused(query, key, value)
    # cuDNN's backward pass takes even lengths only (9.28): one position more, which none looks at.
    padded = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value))
    lengths = jnp.full((batch,), length, jnp.int32)
    y = fused(*padded, query_seq_lengths=lengths, key_value_seq_lengths=lengths)
    return y[:, :length]
