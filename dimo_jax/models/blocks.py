"""What the blocks of all transformers share: how they are run, and by which attention.

Axes: B batch, N positions, H heads.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dimo_jax.common.errors import InputError
from dimo_jax.models.network import Compute

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def run_blocks(
    parent: nn.Module,
    make_block: Callable[..., nn.Module],
    depth: int,
    x: Any,
    compute: Compute,
    *args: Any,
    deterministic: bool,
    prefix: str = "block",
) -> Any:
    """Apply block_0 to block_{depth - 1} to x.

    The parameters lie the same in every mode, one subtree for each block, so that checkpoints and
    bundles do not depend on how a run computes.

    Args:
        parent: the module that is being run, in its compact method.
        make_block: (**kwargs of a module) -> a block, called with (x, *args, deterministic).
        depth: of the blocks.
        x: [B, N, D], or a tuple of such streams; a block gives what it takes.
        compute: remat, scan_layers and gather decide how.
        *args: what each block is given besides.
        deterministic: whether dropout is off.
        prefix: what stands before a block's number, "block" or "<kind>_block" where a network has
            blocks of several kinds.

    Returns:
        Like x.
    """
    if parent.is_initializing():
        for layer in range(depth):
            x = make_block(name=f"{prefix}_{layer}")(x, *args, deterministic)
        return x
    # Apart from its parent, so that every mode draws the same dropout.
    block = make_block(parent=None)

    def body(x: Any, layer: tuple[Any, Any], name: str) -> tuple[Any, None]:
        params, key = layer
        if compute.gather is not None:
            # Here, so that one block at a time is whole, and a backward pass that recomputes
            # gathers again instead of keeping it.
            params = compute.gather({name: params})[name]
        rngs = {} if deterministic else {"dropout": key}
        return block.apply({"params": params}, x, *args, deterministic, rngs=rngs), None

    if compute.remat != "none":
        body = jax.checkpoint(body, policy=_POLICIES[compute.remat], static_argnums=2)
    names = [f"{prefix}_{layer}" for layer in range(depth)]
    every = [parent.variables["params"][name] for name in names]
    keys = None if deterministic else jax.random.split(parent.make_rng("dropout"), depth)
    if compute.scan_layers:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)
        # Blocks are alike: where the first one's parameters lie, the others' lie too.
        return jax.lax.scan(lambda x, layer: body(x, layer, names[0]), x, (stacked, keys))[0]
    for layer, (name, params) in enumerate(zip(names, every, strict=True)):
        x, _ = body(x, (params, None if keys is None else keys[layer]), name)
    return x


@jax.custom_vjp
def _softmax(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """jax.nn.softmax over the last axis, float32."""
    return jax.nn.softmax(x)


# The derivative as JAX transposes it takes XLA's CPU backend twice as long as this (jax 0.10).
_softmax.defvjp(
    lambda x: (_softmax(x),) * 2,
    lambda probs, ct: (probs * (ct - (ct * probs).sum(-1, keepdims=True)),),
)


def _attention(
    query: Float[Array, "B N H d"],
    key: Float[Array, "B N H d"],
    value: Float[Array, "B N H d"],
    dropout_rng: Any = None,
    dropout_rate: float = 0.0,
    deterministic: bool = True,
) -> Float[Array, "B N H d"]:
    """softmax(q k / sqrt(d)) v: the softmax in float32, the products in the arguments' dtype."""
    # Heads before positions, written out: on the order "B N H d" XLA's CPU backend does the two
    # products element by element, three times as slowly (jax 0.10).
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    scores = jnp.einsum("bhqd,bhkd->bhqk", query / math.sqrt(query.shape[-1]), key)
    probs = _softmax(scores.astype(jnp.float32)).astype(value.dtype)
    if dropout_rate and not deterministic:
        kept = jax.random.bernoulli(dropout_rng, 1 - dropout_rate, probs.shape)
        probs = jnp.where(kept, probs / (1 - dropout_rate), 0)
    return jnp.einsum("bhqk,bhkd->bhqd", probs, value).swapaxes(1, 2)


def attention(name: str) -> Callable[..., Float[Array, "B N H d"]]:
    """Return the attention of a name, for nn.MultiHeadDotProductAttention and on its own.

    Args:
        name: "xla", which runs anywhere; or "cudnn", on an NVIDIA GPU in bfloat16, without dropout
            on the probabilities.

    Returns:
        (query, key, value [B, N, H, d], dropout_rng, dropout_rate, deterministic) -> [B, N, H, d].

    Raises:
        InputError: when "cudnn" is called on another device, in another dtype or with dropout.

    Source: Vaswani et al., arXiv 1706.03762, equation 1.
    """
    return {"xla": _attention, "cudnn": _cudnn_attention}[name]


def _cudnn_attention(
    query: Float[Array, "B N H d"],
    key: Float[Array, "B N H d"],
    value: Float[Array, "B N H d"],
    dropout_rng: Any = None,
    dropout_rate: float = 0.0,
    deterministic: bool = True,
) -> Float[Array, "B N H d"]:
    del dropout_rng
    found = []
    if jax.default_backend() != "gpu":
        found.append(f"devices of the kind {jax.default_backend()}")
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        found.append(f"config.compute_dtype={query.dtype}")
    if dropout_rate and not deterministic:
        found.append("dropout in training")
    if found:
        raise InputError(
            "config.attention=cudnn needs an NVIDIA GPU, config.compute_dtype=bfloat16 and no "
            f"dropout on attention; found {', '.join(found)}; give --config.attention=xla"
        )
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
