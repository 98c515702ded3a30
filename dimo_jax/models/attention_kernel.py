"""Attention of sequences short enough for a TPU core's memory, as one kernel each way.

Scores and probabilities never leave the core: a program reads the queries, keys and values of some
heads of one example, [N, heads x d] as the projections write them, and writes their result. Heads
come in groups whose channels fill whole registers of 128 lanes; no array is padded or transposed in
HBM. In the core queries, values and gradients are transposed once for all heads: a head is then a
range of rows, not of lanes, and nothing is moved to cut it out. Scores have the keys along rows, so
that sums over keys are sums of registers; queries are taken some at a time, so that scores fit.

The backward pass recomputes the probabilities from queries and keys, all that is kept.

Axes: B batch, N positions, R some of them, H heads, d channels of a head.
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
        name=f"attention{body.__name__}_{width}",
    )(*flat)
    return [x.reshape(arrays[0].shape) for x in found]


def _rows(length: int) -> list[slice]:
    step = max(_LANES, _SCORES_BYTES // (4 * length) // _LANES * _LANES)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _product(a, b, contracted):
    return jax.lax.dot_general(
        a, b, ((contracted[:1], contracted[1:]), ((), ())), preferred_element_type=jnp.float32
    )


def _over_channels(a_ref, b, own):
    """Return a b for one head, [N, R]: `a_ref` [1, N, heads x d], b [d, R].

    Whole registers of `a_ref`, with zeros against the channels of other heads: nothing is moved.
    """
    first = own.start // _LANES * _LANES
    last = min(-(-own.stop // _LANES) * _LANES, a_ref.shape[2])
    before, after = (
        jnp.zeros((n, b.shape[1]), b.dtype) for n in (own.start - first, last - own.stop)
    )
    padded = jnp.concatenate([x for x in (before, b, after) if len(x)])
    return _product(a_ref[0, :, first:last], padded, (1, 0))


def _exponentials(key_ref, query, own):
    scores = _over_channels(key_ref, query, own)
    return jnp.exp2(scores - scores.max(0, keepdims=True))


def _transposed(ref, rows, factor=None):
    x = ref[0, rows]
    if factor is not None:
        x = (x.astype(jnp.float32) * factor).astype(x.dtype)
    return x.T


def _forward(group, width, query_ref, key_ref, value_ref, out_ref):
    length, dtype = query_ref.shape[1], query_ref.dtype
    value = value_ref[0].T
    for rows in _rows(length):
        query = _transposed(query_ref, rows, math.log2(math.e) / math.sqrt(width))
        results = []
        for head in range(group):
            own = slice(head * width, (head + 1) * width)
            weights = _exponentials(key_ref, query[own], own)
            y = _product(value[own], weights.astype(dtype), (1, 0))
            results.append((y / weights.sum(0, keepdims=True)).astype(dtype))
        out_ref[0, rows] = jnp.concatenate(results).T


def _backward(group, width, query_ref, key_ref, value_ref, ct_ref, dq_ref, dk_ref, dv_ref):
    length, dtype, scale = query_ref.shape[1], query_ref.dtype, 1 / math.sqrt(width)
    key = key_ref[0].T
    dks = [jnp.zeros((width, length), jnp.float32) for _ in range(group)]
    dvs = list(dks)
    for rows in _rows(length):
        scaled = _transposed(query_ref, rows, math.log2(math.e) / math.sqrt(width))
        query, ct = query_ref[0, rows].T, ct_ref[0, rows].T
        dqs = []
        for head in range(group):
            own = slice(head * width, (head + 1) * width)
            weights = _exponentials(key_ref, scaled[own], own)
            probs = weights * (1 / weights.sum(0, keepdims=True))
            d_probs = _over_channels(value_ref, ct[own], own)
            d_scores = probs * (d_probs - (probs * d_probs).sum(0, keepdims=True))
            d_scores = d_scores.astype(dtype)
            dqs.append((_product(key[own], d_scores, (1, 0)) * scale).astype(dtype))
            dks[head] += _product(query[own], d_scores, (1, 1))
            dvs[head] += _product(ct[own], probs.astype(dtype), (1, 1))
        dq_ref[0, rows] = jnp.concatenate(dqs).T
    dk_ref[0] = jnp.concatenate([(dk * scale).astype(dtype) for dk in dks]).T
    dv_ref[0] = jnp.concatenate([dv.astype(dtype) for dv in dvs]).T
