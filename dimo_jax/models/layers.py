"""Layers that transformers share: what they cost, and what their backward passes keep.

In float32 they are Flax's and JAX's own, to which parity tests hold them. In bfloat16 norms and
activations have their derivatives written out, so that a backward pass keeps their input as it is
and no float32 copy of it; statistics and sums are float32 all the same.

Axes: D, I, O channels, the last one; R rows.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# a, b, c of Phi(x) = (1 + tanh(x (a + b x^2 + c x^4))) / 2. _ERF, fitted by least squares of a high
# power on [0, 8], is off by 5.4e-5 in x Phi(x) and 1.4e-4 in its slope: bfloat16 rounds 1 by 4e-3.
_ERF = (0.7977151581587291, 0.036802466811899026, -0.00031676121953533846)
_TANH = (0.7978845608028654, 0.044715 * 0.7978845608028654, 0.0)
_LAST = 36.0  # of x^2: beyond, tanh is 1, and _ERF's polynomial would turn around


class Projection(nn.Module):
    """Flax's Dense or DenseGeneral, on rows of channels.

    Rows, since on more axes XLA's CPU backend copies activations into another order for each
    kernel's gradient, a fifth of a step at width 64 (jax 0.10.2). One axis of channels, since XLA's
    TPU compiler puts (heads, channels) into tiles of (16, 128) and copies them to what follows.

    Attributes:
        kernel_shape: whose elements are I x O; the first axes, up to I, are the input's.
        bias_shape: whose elements are O.
    """

    kernel_shape: tuple[int, ...]
    bias_shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "R I"], lead: tuple[Any, ...]) -> Float[Array, "..."]:
        """Multiply and add; the result's rows lie in the axes `lead`."""
        inputs = x.shape[-1]

        def init(key: Array, shape: tuple[int, ...]) -> Array:
            flat = (inputs, math.prod(shape) // inputs)
            return nn.initializers.lecun_normal()(key, flat).reshape(shape)

        kernel = self.param("kernel", init, self.kernel_shape)
        bias = self.param("bias", nn.initializers.zeros, self.bias_shape)
        y = x @ kernel.reshape(inputs, -1)
        if x.dtype != jnp.float32:
            return _biased(y, bias.reshape(-1)).reshape(*lead, -1)
        # In this order, which a sum over rows keeps: runs in float32 are equal to the bit.
        y = y.reshape(*lead, -1)
        return y + bias.reshape((1,) * len(lead) + (-1,))


@jax.custom_vjp
def _biased(x: Float[Array, "R O"], bias: Any) -> Float[Array, "R O"]:
    return x + bias[None]


def _biased_pull_back(_: None, ct: Array) -> tuple[Array, Array]:
    # A sum over rows as a product: it takes a TPU's matrix unit next to no time, and its vector
    # unit as long as a projection (libtpu 0.0.42). Fewer than 8 rows would be a sum again.
    ones = jnp.ones((8, len(ct)), ct.dtype)
    total = jnp.dot(ones, ct, preferred_element_type=jnp.float32)[0]
    return ct, total.astype(ct.dtype)


_biased.defvjp(lambda x, bias: (_biased(x, bias), None), _biased_pull_back)


class LayerNorm(nn.LayerNorm):
    """Flax's, with PyTorch's variance E[(x - E[x])^2] in float32.

    Flax's fast variance E[x^2] - E[x]^2 breaks parity there, most of all at epsilon 1e-12. In
    bfloat16 its error is far below the input's rounding, and it reads the input once.
    """

    use_fast_variance: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalise the last axis."""
        if x.dtype == jnp.float32:
            return super().__call__(x)
        return _weighted(self, x, centred=True)


class RMSNorm(nn.RMSNorm):
    """Flax's."""

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalise the last axis."""
        if x.dtype == jnp.float32:
            return super().__call__(x)
        return _weighted(self, x, centred=False)


def _weighted(module: Any, x: Array, centred: bool) -> Array:
    size = x.shape[-1:]
    scale = module.param("scale", module.scale_init, size) if module.use_scale else None
    has_bias = centred and module.use_bias
    bias = module.param("bias", module.bias_init, size) if has_bias else None
    return normalized(x, scale, bias, module.epsilon, centred)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalized(
    x: Float[Array, "*B D"],
    scale: Any,
    bias: Any,
    epsilon: float,
    centred: bool,
) -> Float[Array, "*B D"]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias; without the mean an RMS norm.

    Args:
        x: of any float dtype, which the result has.
        scale: [D]; None: 1.
        bias: [D]; None: 0.
        epsilon: added to the variance.
        centred: whether the mean is subtracted.
    """
    return _normalize(x, scale, bias, epsilon, centred)[0]


def _normalize(x, scale, bias, epsilon, centred):
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True) if centred else 0.0
    variance = jnp.maximum((wide * wide).mean(-1, keepdims=True) - mean * mean, 0)
    factor = jax.lax.rsqrt(variance + epsilon)
    y = (wide - mean) * factor
    if scale is not None:
        y = y * _row(scale, y)
    if bias is not None:
        y = y + _row(bias, y)
    return y.astype(x.dtype), (x, scale, bias, mean, factor)


def _row(weight: Any, like: Any) -> Any:
    return weight.astype(jnp.float32).reshape((1,) * (like.ndim - 1) + (-1,))


def _normalize_pull_back(epsilon, centred, kept, ct):
    x, scale, bias, mean, factor = kept
    wide = ct.astype(jnp.float32)
    y = (x.astype(jnp.float32) - mean) * factor
    lead = tuple(range(x.ndim - 1))
    d_scale = None if scale is None else (wide * y).sum(lead).astype(scale.dtype)
    d_bias = None if bias is None else wide.sum(lead).astype(bias.dtype)
    inner = wide if scale is None else wide * _row(scale, wide)
    rest = inner - y * (inner * y).mean(-1, keepdims=True)
    if centred:
        rest = rest - inner.mean(-1, keepdims=True)
    return (rest * factor).astype(x.dtype), d_scale, d_bias


normalized.defvjp(_normalize, _normalize_pull_back)


def gelu(x: Float[Array, "*S"], approximate: bool = False) -> Float[Array, "*S"]:
    """Return x Phi(x), by erf as PyTorch's GELU() or by tanh.

    In bfloat16 erf is a tanh of a polynomial (_ERF): erf itself keeps a TPU's vector unit busy
    while its matrix unit waits.
    """
    if x.dtype == jnp.float32:
        return jax.nn.gelu(x, approximate=approximate)
    return _gelu(x, _TANH if approximate else _ERF)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gelu(x: Float[Array, "*S"], polynomial: tuple[float, ...]) -> Float[Array, "*S"]:
    wide = x.astype(jnp.float32)
    a, b, c = polynomial
    square = jnp.minimum(wide * wide, _LAST)
    return (0.5 * wide * (1 + jnp.tanh(wide * (a + square * (b + square * c))))).astype(x.dtype)


def _gelu_pull_back(polynomial: tuple[float, ...], x: Array, ct: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    a, b, c = polynomial
    square = jnp.minimum(wide * wide, _LAST)
    tanh = jnp.tanh(wide * (a + square * (b + square * c)))
    inner = a + square * (3 * b + square * (5 * c))
    slope = 0.5 * (1 + tanh) + 0.5 * wide * (1 - tanh * tanh) * inner
    return ((ct.astype(jnp.float32) * slope).astype(x.dtype),)


_gelu.defvjp(lambda x, polynomial: (_gelu(x, polynomial), x), _gelu_pull_back)


def swiglu(gate: Float[Array, "*S"], x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Return gate sigmoid(gate) x. Source: Shazeer, arXiv 2002.05202."""
    return nn.silu(gate) * x if x.dtype == jnp.float32 else _swiglu(gate, x)


@jax.custom_vjp
def _swiglu(gate: Float[Array, "*S"], x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    return (nn.silu(gate.astype(jnp.float32)) * x.astype(jnp.float32)).astype(x.dtype)


def _swiglu_pull_back(kept: tuple[Array, Array], ct: Array) -> tuple[Array, Array]:
    gate, x, wide = (a.astype(jnp.float32) for a in (*kept, ct))
    sigmoid = jax.nn.sigmoid(gate)
    d_gate = wide * x * sigmoid * (1 + gate * (1 - sigmoid))
    return d_gate.astype(ct.dtype), (wide * gate * sigmoid).astype(ct.dtype)


_swiglu.defvjp(lambda gate, x: (_swiglu(gate, x), (gate, x)), _swiglu_pull_back)
