"""How the blocks of all transformers are run: one after the other, recomputed, or as a scan."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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
    # In training alone, which has a mesh: a network that is exported is for any device.
    on_cpu = compute.mesh is not None and compute.mesh.devices.flat[0].platform == "cpu"
    for layer, (name, params) in enumerate(zip(names, every, strict=True)):
        x, _ = body(x, (params, None if keys is None else keys[layer]), name)
        if on_cpu:
            # XLA's CPU backend would compute the gradient of the stream at a block again from all
            # blocks above it, in each of its uses (jax 0.10): with 24 blocks a tenth of the time
            # of a step, and half of that for compiling it. See programs._options.
            x = jax.lax.optimization_barrier(x)
    return x
