"""Attention of sequences short enough for a TPU core's memory, as one kernel each way.

Scores and probabilities never leave the core: a program reads the queries, keys and values of some
heads of one example, [N, heads x d] as the projections lie, and writes their result. Heads come in
groups whose channels fill whole registers of 128 lanes; no array is padded or transposed in HBM.
Queries are taken some rows at a time, so that their scores fit; keys and values are all there.

The backward pass recomputes the probabilities from queries and keys, all that is kept.

Axes: B batch, N positions, H heads, d channels of a head.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

_LANES = 128
# Float32 scores of one head that are held at a time; the backward pass holds four such arrays.
_SCORES_BYTES = 2**21
_VMEM_BYTES = 64 * 2**20  # half of what a core of v5e and v6e has; XLA gives a kernel 16 MiB else


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend(
    query: Float[Array, "B N H d"],
    key: Float[Array, "B N H d"],
    value: Float[Array, "B N H d"],
    interpret: bool = False,
) -> Float[Array, "B N H d"]:
    """softmax(q k / sqrt(d)) v: the softmax in float32, the products in the arguments' dtype.

    Args:
        query: of a dtype that the device multiplies.
        key: likewise.
        value: likewise.
        interpret: compute it with jax.numpy, on any device: for tests.

    Source: Vaswani et al., arXiv 1706.03762, equation 1.
    """
    (y,) = _call(_forward, 1, interpret, query.shape[2:], query, key, value)
    return y


def _keep(query: Array, key: Array, value: Array, interpret: bool) -> tuple[Array, tuple]:
    return attend(query, key, value, interpret), (query, key, value)


def _pull_back(interpret: bool, kept: tuple, cotangent: Array) -> tuple[Array, ...]:
    return tuple(_call(_backward, 3, interpret, kept[0].shape[2:], *kept, cotangent))


attend.defvjp(_keep, _pull_back)


def _call(body, outputs, interpret, sizes, *arrays):
    heads, width = sizes
    batch, length = arrays[0].shape[:2]
    group = math.lcm(width, _LANES) // width
    group = group if heads % group == 0 else heads
    flat = [x.reshape(batch, length, heads * width) for x in arrays]
    block = pl.BlockSpec((1, length, group * width), lambda b, h: (b, 0, h))
    found = pl.pallas_call(
        functools.partial(body, group, width),
        out_shape=[jax.ShapeDtypeStruct(flat[0].shape, flat[0].dtype)] * outputs,
        grid=(batch, heads // group),
        in_specs=[block] * len(flat),
        out_specs=[block] * outputs,
        interpret=interpret,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=_VMEM_BYTES
        ),
        name=body.__name__,
    )(*flat)
    return [x.reshape(arrays[0].shape) for x in found]


def _rows(length: int) -> list[slice]:
    step = max(_LANES, _SCORES_BYTES // (4 * length) // _LANES * _LANES)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _product(a, b, contracted):
    return jax.lax.dot_general(
        a, b, ((contracted[:1], contracted[1:]), ((), ())), preferred_element_type=jnp.float32
    )


def _probs(query, key, scale):
    scores = _product(query, key, (1, 1)) * scale
    exponentials = jnp.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _forward(group, width, query_ref, key_ref, value_ref, out_ref):
    length, dtype = query_ref.shape[1], query_ref.dtype
    for head in range(group):
        own = slice(head * width, (head + 1) * width)
        key, value = key_ref[0, :, own], value_ref[0, :, own]
        for rows in _rows(length):
            probs = _probs(query_ref[0, rows, own], key, 1 / math.sqrt(width))
            out_ref[0, rows, own] = _product(probs.astype(dtype), value, (1, 0)).astype(dtype)


def _backward(group, width, query_ref, key_ref, value_ref, ct_ref, dq_ref, dk_ref, dv_ref):
    length, dtype, scale = query_ref.shape[1], query_ref.dtype, 1 / math.sqrt(width)
    for head in range(group):
        own = slice(head * width, (head + 1) * width)
        key, value = key_ref[0, :, own], value_ref[0, :, own]
        dk = dv = jnp.zeros((length, width), jnp.float32)
        for rows in _rows(length):
            query, ct = query_ref[0, rows, own], ct_ref[0, rows, own]
            probs = _probs(query, key, scale)
            d_probs = _product(ct, value, (1, 1))
            d_scores = probs * (d_probs - (probs * d_probs).sum(-1, keepdims=True)) * scale
            d_scores = d_scores.astype(dtype)
            dq_ref[0, rows, own] = _product(d_scores, key, (1, 0)).astype(dtype)
            dk += _product(d_scores, query, (0, 0))
            dv += _product(probs.astype(dtype), ct, (0, 0))
        dk_ref[0, :, own] = dk.astype(dtype)
        dv_ref[0, :, own] = dv.astype(dtype)
