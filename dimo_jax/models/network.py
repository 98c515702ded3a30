"""What every token network looks like from outside."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

# Parameters of a block, which blocks.run_blocks gathers on its own.
_BLOCK = re.compile(r"(^|_)block_\d+$")


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a run computes a network; a bundle says nothing of it.

    Attributes:
        dtype: "float32", or "bfloat16" as torch.autocast does it: parameters, logits, the norms'
            statistics and the attention's probabilities stay float32.
        remat: what a backward pass keeps of a block: "none" is recomputed, "full" all is, "dots"
            all but the products with parameters.
        scan_layers: one compiled block, run once for each layer.
        attention: "xla"; "cudnn" or "pallas", the fused kernels of an NVIDIA GPU or a TPU; or
            "auto", the one that applies.
        mesh: a jax.sharding.Mesh of the devices that share a batch, which may be absent; None: this
            process's own.
        gather: for parameters that are divided over devices: a tree of them -> the same whole on
            every device. Called on each block as it is run, and on the rest at the start.
    """

    dtype: str = "float32"
    remat: str = "none"
    scan_layers: bool = False
    attention: str = "xla"
    mesh: Any = None
    gather: Callable[[Any], Any] | None = None


# Compared and hashed by identity, as a tokenizer: a static argument of jax.jit.
@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A token predictor p(x_0 | x_t, condition) as two pure functions.

    Attributes:
        config: plain values that rebuild it through models.build.
        num_tokens: L, image tokens in a sequence.
        codebook_size: codes 0 .. codebook_size - 1 are image tokens.
        num_classes: labels 0 .. num_classes - 1; the label num_classes means "no condition". 0
            where the condition is text, whose null condition is another text.
        has_null: whether there is a null condition; without it there is no guidance.
        init: key -> params.
        apply: (params, tokens [B, L] int32, condition, *, perturb=None, dropout_key=None) ->
            logits [B, L, V] float32. `perturb` maps the image tokens' embeddings [B, L, D] before
            positions are added; dropout is off without a `dropout_key`.
        condition: shapes and dtypes of one example's condition, without the axis B: those of a
            label, or of a dict of text features.
        has_mixture: whether a label may come with a number in [0, 1), as {"label": [B],
            "mixture": [B]}: one network then is a mixture of as many as there are numbers (di4c).
        guide: as `apply`, of another network whose logits without a condition guide this one's
            (joined.guided); None: its own do.
    """

    config: dict[str, Any]
    num_tokens: int
    codebook_size: int
    num_classes: int
    init: Callable[..., Any]
    apply: Callable[..., Any]
    has_null: bool = True
    condition: Any = jax.ShapeDtypeStruct((), jnp.int32)
    has_mixture: bool = False
    guide: Callable[..., Any] | None = None

    @property
    def mask_id(self) -> int:
        """The token that means "masked": the first after the codes."""
        return self.codebook_size


def from_module(module: nn.Module, config: dict[str, Any], has_null: bool = True) -> Network:
    """Return a Network out of a Flax module.

    Args:
        module: called with (tokens [B, L], labels [B], perturb or None, deterministic) it gives
            logits [B, L, V].
        config: plain values that rebuild it: "name", and num_tokens, codebook_size and num_classes
            among its sizes.
        has_null: see Network.
    """

    def init(key: Key[Array, ""]) -> Any:
        tokens = jnp.zeros((1, config["num_tokens"]), jnp.int32)
        return module.init(key, tokens, jnp.zeros((1,), jnp.int32), None, True)["params"]

    def apply(
        params: Any,
        tokens: Int[Array, "B L"],
        condition: Int[Array, "B"] | Mapping[str, Array],
        *,
        perturb: Callable | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L V"]:
        on = dropout_key is not None
        rngs = {"dropout": dropout_key} if on else {}
        return module.bind({"params": params}, rngs=rngs)(tokens, condition, perturb, not on)

    sizes = {name: config[name] for name in ("num_tokens", "codebook_size", "num_classes")}
    return Network(config, init=init, apply=apply, has_null=has_null, **sizes)


def with_compute(network: Network, compute: Compute) -> Network:
    """Return the same network in another precision, or on parameters that are divided over devices.

    Args:
        network: with float32 parameters.
        compute: its dtype and gather; the rest is the blocks' own business.

    Returns:
        A network of the same config: how it is computed belongs to a run, not to a bundle.
    """
    low_precision = compute.dtype != "float32"
    if not low_precision and compute.gather is None:
        return network

    def apply(
        params: Any,
        tokens: Any,
        condition: Any,
        *,
        perturb: Callable | None = None,
        dropout_key: Any = None,
    ) -> Any:
        if low_precision and perturb is not None:
            perturb = _ending_in(compute.dtype, perturb)
        # First the cast, then the gathering: half as many bytes to send.
        params = jax.tree.map(lambda x: x.astype(compute.dtype), params)
        if compute.gather is not None:
            rest = {name: x for name, x in params.items() if not _BLOCK.search(name)}
            params = {**params, **compute.gather(rest)}
        logits = network.apply(params, tokens, condition, perturb=perturb, dropout_key=dropout_key)
        return logits.astype(jnp.float32)

    return dataclasses.replace(network, apply=apply)


def _ending_in(dtype: str, perturb: Callable) -> Callable:
    """Return the noise, which is float32: left so, it would carry all that follows there."""
    return lambda x: perturb(x.astype(jnp.float32)).astype(dtype)
