"""A network of a few lines for the method's tests: compiles at once, uses every argument."""

import jax
import jax.numpy as jnp

L, V, D, CLASSES = 6, 5, 8, 3
MASK_ID = V


def init(seed, vocabulary=V):
    shapes = {
        "table": (V + 1, D),
        "position": (L, D),
        "label": (CLASSES + 1, D),
        "mix": (D, D),
        "out": (D, vocabulary),
    }
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: jax.random.normal(key, shape) * 0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def apply(params, tokens, condition, *, perturb=None, dropout_key=None):
    x = params["table"][tokens]
    if perturb is not None:
        x = perturb(x)
    x = x + params["position"][None] + params["label"][condition][:, None]
    x = jnp.tanh(x + (x.mean(1) @ params["mix"])[:, None])
    if dropout_key is not None:
        x = x * jax.random.bernoulli(dropout_key, 0.5, x.shape) * 2
    return x @ params["out"]
