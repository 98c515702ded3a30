"""What every token network looks like from outside."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class Network:
    """A token predictor p(x_0 | x_t, condition) as two pure functions.

    Attributes:
        config: plain values that rebuild it through models.build.
        num_tokens: L, image tokens in a sequence.
        codebook_size: codes 0 .. codebook_size - 1 are image tokens.
        num_classes: labels 0 .. num_classes - 1; the label num_classes means "no condition".
        has_null: whether the network knows that label; without it there is no guidance.
        init: key -> params.
        apply: (params, tokens [B, L] int32, condition, *, perturb=None, dropout_key=None) ->
            logits [B, L, V] float32. `perturb` maps the image tokens' embeddings [B, L, D] before
            positions are added; dropout is off without a `dropout_key`.
    """

    config: dict[str, Any]
    num_tokens: int
    codebook_size: int
    num_classes: int
    init: Callable[..., Any]
    apply: Callable[..., Any]
    has_null: bool = True

    @property
    def mask_id(self) -> int:
        """The token that stands for "masked": the first after the codes."""
        return self.codebook_size


def from_module(module: nn.Module, config: dict[str, Any], has_null: bool = True) -> Network:
    """A Network out of a Flax module.

    Args:
        module: called with (tokens [B, L], labels [B], perturb or None, deterministic) it gives
            logits [B, L, V].
        config: plain values that rebuild it: "name", and num_tokens, codebook_size and num_classes
            among its sizes.
        has_null: see Network.
    """
    sizes = [config[name] for name in ("num_tokens", "codebook_size", "num_classes")]

    def init(key: Key[Array, ""]) -> Any:
        tokens = jnp.zeros((1, config["num_tokens"]), jnp.int32)
        return module.init(key, tokens, jnp.zeros((1,), jnp.int32), None, True)["params"]

    def apply(
        params: Any,
        tokens: Int[Array, "B L"],
        condition: Int[Array, "B"],
        *,
        perturb: Callable | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L V"]:
        on = dropout_key is not None
        rngs = {"dropout": dropout_key} if on else {}
        return module.apply({"params": params}, tokens, condition, perturb, not on, rngs=rngs)

    return Network(config, *sizes, init, apply, has_null)


def in_dtype(network: Network, dtype: str) -> Network:
    """The same network, computed in another precision; parameters and logits stay float32.

    Args:
        network: with float32 parameters.
        dtype: "float32" or "bfloat16", as torch.autocast does it: the norms' statistics and the
            attention's probabilities are still float32.

    Returns:
        A network of the same config: the precision belongs to a run, not to a bundle.
    """
    if dtype == "float32":
        return network

    def apply(
        params: Any,
        tokens: Any,
        condition: Any,
        *,
        perturb: Callable | None = None,
        dropout_key: Any = None,
    ) -> Any:
        # The noise is float32: left so, it would carry all that follows back to float32.
        def perturb_low(x: Any) -> Any:
            return perturb(x.astype(jnp.float32)).astype(dtype)

        low = jax.tree.map(lambda x: x.astype(dtype), params)
        noise = None if perturb is None else perturb_low
        logits = network.apply(low, tokens, condition, perturb=noise, dropout_key=dropout_key)
        return logits.astype(jnp.float32)

    return dataclasses.replace(network, apply=apply)
