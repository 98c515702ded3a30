"""Floating-point operations by formula: what a network, a step or a sampler has to compute.

Counted are matrix products and convolutions, a product and a sum as two operations. Norms, softmax,
activations and optimizers are not: they are few, and no device's peak is stated for them. What a
run computes twice to save memory (remat) is counted once, so that MFU says how fast the model is
trained and not how busy the device is. L image tokens, N positions inside the blocks, D width, M
the feed-forward's width.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dimo_jax.common.errors import InputError

Config = Mapping[str, Any]

# A backward pass multiplies each product's gradient with both factors.
_FORWARD_AND_BACKWARD = 3


def _maskgit(model: Config) -> int:
    length, width = model["num_tokens"], model["width"]
    positions = length + 1
    first = 2 * 2 * positions * width**2
    outputs = model["codebook_size"] + int(model["predict_mask_id"])
    return first + _plain_blocks(model, positions) + _head(length, width, outputs)


def _google_maskgit(model: Config) -> int:
    length, width = model["num_tokens"], model["width"]
    return _plain_blocks(model, length + 1) + _head(length, width, model["codebook_size"])


def _plain_blocks(model: Config, positions: int) -> int:
    """Query, key, value and output; the two products of attention; the feed-forward's two."""
    width = model["width"]
    attention = 4 * 2 * positions * width**2 + 2 * 2 * positions**2 * width
    return model["depth"] * (attention + 2 * 2 * positions * width * model["mlp_dim"])


def _head(length: int, width: int, outputs: int) -> int:
    """Return the last layer, then the token table."""
    return 2 * length * width**2 + 2 * length * width * outputs


def _halton(model: Config) -> int:
    length, width = model["num_tokens"], model["width"]
    merges = model["proj"] == 2
    positions = (length // 4 if merges else length) + model["registers"]
    inner = model["heads"] * (width // model["heads"])
    attention = 4 * 2 * positions * width * inner + 2 * 2 * positions**2 * inner
    feed_forward = 3 * 2 * positions * width * model["mlp_dim"]
    modulation = 2 * width * 6 * width  # of the class vector, once for an example
    blocks = model["depth"] * (attention + feed_forward + modulation)
    projections = 2 * 2 * length * width**2 if merges else 0
    last_modulation = 2 * width * 2 * width
    outputs = model["codebook_size"] + 1
    return blocks + projections + last_modulation + 2 * length * width * outputs


def _meissonic(model: Config) -> int:
    length, width, text = model["num_tokens"], model["width"], model["text_length"]
    inner = model["mlp_dim"]
    inside = length // 4 if model["merge"] else length
    positions = inside + text
    attention = 4 * 2 * positions * width**2 + 2 * 2 * positions**2 * width
    # Both streams' feed-forwards; and the modulations, of a vector, once for an example.
    double = attention + 2 * 2 * positions * width * inner + 2 * 2 * width * 6 * width
    # Without the attention's own output: one layer follows attention and feed-forward together.
    single = attention - 2 * positions * width**2 + 2 * width * 3 * width
    single += 2 * positions * width * inner + 2 * positions * (width + inner) * width
    merges = 2 * 2 * length * width**2 if model["merge"] else 0
    ends = 2 * 2 * length * width**2 + 2 * length * width * model["codebook_size"] + merges
    ends += 2 * 2 * inside * width**2 + 2 * text * model["text_dim"] * width
    vector = 2 * width * (256 + width) + 2 * width * (model["pooled_dim"] + 5 * 256 + width)
    blocks = model["depth"] * double + model["single_depth"] * single
    return blocks + ends + vector + 2 * 2 * width**2


FORWARD: dict[str, Callable[[Config], int]] = {
    "google_maskgit": _google_maskgit,
    "halton": _halton,
    "maskgit": _maskgit,
    "meissonic": _meissonic,
}


def forward(model: Config) -> int:
    """Count the operations of one forward pass for one example.

    Args:
        model: a network's complete `config`.

    Raises:
        InputError: if there is no formula for it.

    Source: counted as in Chowdhery et al. 2022 (arXiv 2204.02311), appendix B, but with attention.
    """
    if model["name"] not in FORWARD:
        raise InputError(
            f"there is no formula for the operations of the network {model['name']!r}; there is "
            f"one for {', '.join(FORWARD)}"
        )
    return FORWARD[model["name"]](model)


def distill_passes(config: Config) -> dict[str, int]:
    """Forward passes of each network in one Di[M]O step; a backward pass counts as two.

    Args:
        config: a complete config.

    Returns:
        {"generator", "teacher", "auxiliary"}: as the docstring of method.distill.make_step says.
    """
    section = config["distill"]
    updates, fresh = section["auxiliary"]["updates"], section["auxiliary"]["sample"] == "fresh"
    return {
        "generator": _FORWARD_AND_BACKWARD + updates * fresh,
        "teacher": 1 if section["guidance"] == 1 else 2,
        # With "reuse" the divergence's forward pass is that of the first update.
        "auxiliary": updates * _FORWARD_AND_BACKWARD + int(fresh),
    }


def distill_step(config: Config, model: Config, teacher: Config) -> int:
    """Count the operations of one Di[M]O step, on all devices together.

    Args:
        config: a complete config.
        model: the `config` of generator and auxiliary.
        teacher: that of the teacher's network, usually the same.
    """
    passes = distill_passes(config)
    trained = (passes["generator"] + passes["auxiliary"]) * forward(model)
    return config["distill"]["batch_size"] * (trained + passes["teacher"] * forward(teacher))


def pretrain_step(config: Config, model: Config) -> int:
    """Count the operations of one step of the teacher's own training, on all devices together.

    Args:
        config: a complete config.
        model: the `config` of the teacher's network.
    """
    return config["pretrain"]["batch_size"] * _FORWARD_AND_BACKWARD * forward(model)


def decoding(model: Config, num_steps: int, guided: bool) -> int:
    """Count the operations of one image by a teacher's sampler.

    Args:
        model: the `config` of the teacher's network.
        num_steps: network calls of the sampler.
        guided: whether each call also has an unconditional branch.
    """
    return num_steps * (2 if guided else 1) * forward(model)


def products(function: Callable[..., Any], *args: Any) -> int:
    """Count the operations of the matrix products and convolutions that a function traces to.

    For what has no formula here, such as a tokenizer's decoder.

    Args:
        function: without loops and branches.
        *args: its arguments, arrays or shapes.

    Raises:
        ValueError: if there is a loop or a branch: how often it runs, a trace need not know.
    """
    return _in_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _in_jaxpr(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("cond", "scan", "while"):
            raise ValueError(f"the operations inside of {name} cannot be counted")
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            per_output = math.prod(shape[axis] for axis in contracted)
            total += 2 * equation.outvars[0].aval.size * per_output
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * (kernel.size // outputs)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            total += _in_jaxpr(inner) if hasattr(inner, "eqns") else 0
    return total
