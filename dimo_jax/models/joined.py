"""Two networks as one: with text and the tower of its condition, or guided by another.

A network with text and CLIP's text tower are trained together; the condition are the ids of a text.
After the training its parameters are parted: those of the
network, and those of CLIP's text tower, which from then on is the frozen encoder of prompts.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dimo_jax.common.errors import InputError
from dimo_jax.models.clip import Clip
from dimo_jax.models.network import Network

TRANSFORMER, TEXT_ENCODER = "transformer", "text_encoder"
# Of a network that another one guides: keys of its parameters, and of its config.
NETWORK, GUIDE = "network", "guide"


def text_features(
    encoder: Clip, params: Any, ids: Int[Array, "B T"], micro: Any
) -> dict[str, Array]:
    """Return the condition of a network with text.

    Args:
        encoder: CLIP, of which the text tower is used.
        params: its parameters.
        ids: of the texts.
        micro: the five micro-conditions of every example.

    Returns:
        {"states" [B, T, E] of the last but one layer, "pooled" [B, P], "micro" [B, 5]} float32.
    """
    found = encoder.encode_text(params, ids)
    sizes = jnp.tile(jnp.asarray(micro, jnp.float32), (len(ids), 1))
    made = {"states": found["penultimate"], "pooled": found["projected"], "micro": sizes}
    return jax.tree.map(lambda x: x.astype(jnp.float32), made)


def join(
    network: Network,
    encoder: Clip,
    micro: Any,
    gather: Callable[[Any], Any] | None = None,
) -> Network:
    """Return both as one network; no bundle holds it.

    Args:
        network: whose condition is text.
        encoder: CLIP's text tower, whose features it takes.
        micro: the five micro-conditions of every example.
        gather: for a tower whose parameters are divided over devices, as models.Compute has it.

    Returns:
        A network whose parameters are {"transformer": ..., "text_encoder": ...} and whose condition
        is {"ids": int32 [T]}; the rest is that of `network`.
    """

    def init(key: Key[Array, ""]) -> Any:
        keys = jax.random.split(key)
        return {TRANSFORMER: network.init(keys[0]), TEXT_ENCODER: encoder.init(keys[1])}

    def apply(
        params: Any, tokens: Int[Array, "B L"], condition: Any, **options: Any
    ) -> Float[Array, "B L V"]:
        tower = params[TEXT_ENCODER]
        tower = tower if gather is None else gather(tower)
        condition = text_features(encoder, tower, condition["ids"], micro)
        return network.apply(params[TRANSFORMER], tokens, condition, **options)

    ids = jax.ShapeDtypeStruct((encoder.context,), jnp.int32)
    return dataclasses.replace(network, init=init, apply=apply, condition={"ids": ids})


def guided(network: Network, guide: Network) -> Network:
    """Return a network whose guidance leads away from another one's logits without a condition.

    Args:
        network: of classes.
        guide: of the same tokens and classes; its own mixture, if it has one, is not used.

    Returns:
        A network whose parameters are {"network": ..., "guide": ...}.

    Raises:
        InputError: the two do not fit.

    Source: sony/di4c `--lfg`, where the student is guided by its teacher.
    """
    sizes = ("num_tokens", "codebook_size", "num_classes", "condition")
    differing = [name for name in sizes if getattr(network, name) != getattr(guide, name)]
    if differing or not guide.has_null:
        reason = f"it has another {', '.join(differing)}" if differing else "it has no null class"
        raise InputError(f"the network {guide.config['name']} cannot be the guide: {reason}")

    def init(key: Key[Array, ""]) -> Any:
        keys = jax.random.split(key)
        return {NETWORK: network.init(keys[0]), GUIDE: guide.init(keys[1])}

    def apply(params: Any, tokens: Int[Array, "B L"], condition: Any, **options: Any) -> Any:
        return network.apply(params[NETWORK], tokens, condition, **options)

    def of_guide(params: Any, tokens: Int[Array, "B L"], condition: Any) -> Any:
        return guide.apply(params[GUIDE], tokens, condition)

    config = {"name": "guided", NETWORK: network.config, GUIDE: guide.config}
    return dataclasses.replace(network, config=config, init=init, apply=apply, guide=of_guide)
