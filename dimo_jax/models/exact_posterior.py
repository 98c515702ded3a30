"""A teacher that needs no learning: the exact posterior of a known joint distribution.

Its one parameter is the logarithm of the joint over all L tokens, an array of L axes of V values.
For what the toys of configs/toy.py show, nothing in the teacher may be approximate.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dimo_jax.models.network import Network


def build(*, num_tokens: int, codebook_size: int, num_classes: int = 1) -> Network:
    """Return the posterior p(x_0^i | visible tokens) of every position, by summing over the joint.

    Args:
        num_tokens: L; the joint has codebook_size ** L entries, so keep it small.
        codebook_size: V.
        num_classes: accepted for the common signature; the condition is not looked at.

    Returns:
        The network; params are {"log_joint": [V, ..., V] float32, strictly finite}. `init` gives
        the uniform joint. Logits are normalised log-probabilities; at a visible position they hold
        nearly all mass on the visible token.
    """
    config = {"name": "exact_posterior", **locals()}
    shape = (codebook_size,) * num_tokens

    def init(key: Key[Array, ""]) -> Any:
        del key
        return {"log_joint": jnp.full(shape, -num_tokens * jnp.log(codebook_size), jnp.float32)}

    def one(log_joint: Array, tokens: Int[Array, "L"]) -> Float[Array, "L V"]:
        for axis in range(num_tokens):
            token = tokens[axis]
            # Far below any log-probability, yet finite: a visible token excludes the others.
            excluded = jnp.where(jnp.arange(codebook_size) == token, 0.0, -1e4)
            visible = jnp.where(token == codebook_size, 0.0, excluded)
            at = tuple(slice(None) if a == axis else None for a in range(num_tokens))
            log_joint = log_joint + jnp.broadcast_to(visible[at], shape)
        marginals = [
            jax.nn.logsumexp(log_joint, axis=tuple(a for a in range(num_tokens) if a != i))
            for i in range(num_tokens)
        ]
        return jax.nn.log_softmax(jnp.stack(marginals), axis=-1)

    def apply(
        params: Any,
        tokens: Int[Array, "B L"],
        condition: Int[Array, "B"],
        *,
        perturb: None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L V"]:
        del condition, perturb, dropout_key
        return jax.vmap(one, in_axes=(None, 0))(params["log_joint"], tokens)

    return Network(config, num_tokens, codebook_size, num_classes, init, apply)
