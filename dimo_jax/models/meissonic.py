"""Meissonic's transformer, text to image: text and image attend to each other in every block.

In the double blocks each stream has parameters of its own, in the single blocks both have the same.
2 by 2 tokens are merged into one before the blocks and parted again after them. Attention looks at
padded text too. Axes: B batch, L image tokens, M of them inside the blocks (L / 4 where merged), T
text tokens, N = T + M, H heads, d = D / H, D width, V codes, K values of a condition.

Source: Bai et al., arXiv 2410.08261; viiika/Meissonic, src/transformer.py. Its blocks are those of
Flux, what stands before and after them is aMUSEd's.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dimo_jax.common.errors import InputError
from dimo_jax.models import blocks
from dimo_jax.models.attention import AttentionFn, attention_of
from dimo_jax.models.layers import LayerNorm, RMSNorm, gelu
from dimo_jax.models.network import Compute, Network
from dimo_jax.models.waves import rotary, rotated, sinusoids

# What the network may get as its time: nothing, as Di[M]O's released code does by accident (it
# casts a ratio below 1 to an integer) and its released weights need; or the share of masked tokens.
TIMESTEPS = ("zero", "ratio")
_STREAMS = ("text_", "")  # prefixes of their parameters, in the order of the joint sequence

_gelu = functools.partial(gelu, approximate=True)

Streams = tuple[Float[Array, "B T D"], Float[Array, "B M D"]]


def _dense(features: int, name: str, bias: bool = True) -> nn.Dense:
    return nn.Dense(features, use_bias=bias, name=name)


def _rms(name: str) -> RMSNorm:
    return RMSNorm(epsilon=1e-6, name=name)


def _modulated(
    x: Float[Array, "B N D"], shift: Float[Array, "B 1 D"], scale: Float[Array, "B 1 D"]
) -> Float[Array, "B N D"]:
    """Return a norm without weights of its own, then scale and shift."""
    norm = LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False)
    return norm(x) * (1 + scale) + shift


def _heads(x: Float[Array, "B N D"], heads: int, prefix: str) -> tuple[Array, Array, Array]:
    """Query, key and value [B, N, H, d]; the first two normalised within each head."""
    query, key, value = (
        _dense(x.shape[-1], f"{prefix}{name}")(x).reshape(*x.shape[:2], heads, -1)
        for name in ("query", "key", "value")
    )
    return _rms(f"{prefix}query_norm")(query), _rms(f"{prefix}key_norm")(key), value


def _attended(attention: AttentionFn, query: Array, key: Array, value: Array, angles: Any) -> Array:
    """Attention of all positions, [B, N, D] in the values' dtype."""
    y = attention(rotated(query, angles), rotated(key, angles), value)
    return y.reshape(*y.shape[:2], -1).astype(value.dtype)


class DoubleBlock(nn.Module):
    """Joint attention, then a feed-forward for each stream; all shifted, scaled and gated."""

    heads: int
    mlp_dim: int
    attention: AttentionFn

    @nn.compact
    def __call__(
        self, streams: Streams, condition: Float[Array, "B D"], angles: Any, deterministic: bool
    ) -> Streams:
        """Apply one layer; `condition` is SiLU of the vector of time and text. No dropout."""
        del deterministic
        width = condition.shape[-1]
        chunks, parts = [], []
        for prefix, x in zip(_STREAMS, streams, strict=True):
            modulation = _dense(6 * width, f"{prefix}modulation")(condition)[:, None]
            chunks.append(jnp.split(modulation, 6, axis=-1))
            shift, scale, *_ = chunks[-1]
            parts.append(_heads(_modulated(x, shift, scale), self.heads, prefix))
        query, key, value = (jnp.concatenate(pair, axis=1) for pair in zip(*parts, strict=True))
        y = _attended(self.attention, query, key, value, angles)
        text_length = streams[0].shape[1]
        results = []
        for prefix, x, (_, _, gate, shift, scale, mlp_gate), own in zip(
            _STREAMS, streams, chunks, (y[:, :text_length], y[:, text_length:]), strict=True
        ):
            x = x + gate * _dense(width, f"{prefix}out")(own)
            h = _gelu(_dense(self.mlp_dim, f"{prefix}mlp_in")(_modulated(x, shift, scale)))
            results.append(x + mlp_gate * _dense(width, f"{prefix}mlp_out")(h))
        return tuple(results)


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side on the joint sequence, through one output matrix."""

    heads: int
    mlp_dim: int
    attention: AttentionFn

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        condition: Float[Array, "B D"],
        angles: Any,
        deterministic: bool,
    ) -> Float[Array, "B N D"]:
        """Apply one layer, as in DoubleBlock."""
        del deterministic
        width = x.shape[-1]
        modulation = _dense(3 * width, "modulation")(condition)[:, None]
        shift, scale, gate = jnp.split(modulation, 3, axis=-1)
        y = _modulated(x, shift, scale)
        attended = _attended(self.attention, *_heads(y, self.heads, ""), angles)
        hidden = _gelu(_dense(self.mlp_dim, "mlp_in")(y))
        return x + gate * _dense(width, "out")(jnp.concatenate([attended, hidden], axis=-1))


class MeissonicModule(nn.Module):
    """The parameters and the forward pass; see `build` for the sizes."""

    num_tokens: int
    codebook_size: int
    vocabulary: int
    width: int
    depth: int
    single_depth: int
    heads: int
    mlp_dim: int
    rope_dims: tuple[int, ...]
    merge: bool
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "B L"],
        states: Float[Array, "B T E"],
        pooled: Float[Array, "B P"],
        micro: Float[Array, "B 5"],
        timestep: Float[Array, "B"],
        perturb: Callable | None,
    ) -> Float[Array, "B L V"]:
        """Logits over the codes. `ids` are rows of the table, of which the last is [MASK]."""
        table = self.param(
            "token_embedding", nn.initializers.normal(0.02), (self.vocabulary, self.width)
        )
        states, pooled = states.astype(table.dtype), pooled.astype(table.dtype)
        vector = nn.silu(self.vector(pooled, micro, timestep))
        text = _rms("text_norm")(_dense(self.width, "text_in")(states))

        image = _dense(self.width, "embed_out", False)(_rms("embed_norm")(table[ids]))
        if perturb is not None:
            image = perturb(image)
        if self.merge:
            image = self.merged(image)
        image = _dense(self.width, "to_hidden", False)(_rms("to_hidden_norm")(image))

        angles = rotary(text.shape[1], math.isqrt(image.shape[1]), self.rope_dims)
        double, single = (
            functools.partial(block, self.heads, self.mlp_dim, attention_of(self))
            for block in (DoubleBlock, SingleBlock)
        )
        run = functools.partial(blocks.run_blocks, self, deterministic=True)
        streams = run(
            double, self.depth, (text, image), self.compute, vector, angles, prefix="double_block"
        )
        x = run(
            single,
            self.single_depth,
            jnp.concatenate(streams, axis=1),
            self.compute,
            vector,
            angles,
            prefix="single_block",
        )[:, text.shape[1] :]
        x = _dense(self.width, "from_hidden", False)(_rms("from_hidden_norm")(x))
        if self.merge:
            x = self.parted(x)
        x = _rms("head_norm")(_dense(self.width, "head_in", False)(x))
        return _dense(self.codebook_size, "head_out", False)(x)

    def vector(
        self, pooled: Float[Array, "B P"], micro: Float[Array, "B 5"], timestep: Float[Array, "B"]
    ) -> Float[Array, "B D"]:
        """Return what modulates every block: time, pooled text and micro-conditions."""
        # In float32 up to the waves: bfloat16 has 8 bits, a timestep times 1000 more.
        waves = [sinusoids(x).astype(pooled.dtype) for x in (1000 * timestep[:, None], micro)]
        time = _dense(self.width, "time_out")(nn.silu(_dense(self.width, "time_in")(waves[0])))
        x = jnp.concatenate([pooled, waves[1]], axis=-1)
        x = nn.silu(_dense(self.width, "condition_in", False)(x))
        x = _dense(self.width, "condition_out", False)(x)
        return time + _dense(self.width, "pooled_out")(nn.silu(_dense(self.width, "pooled_in")(x)))

    def merged(self, x: Float[Array, "B L D"]) -> Float[Array, "B M D"]:
        """Four neighbouring tokens become one."""
        side = math.isqrt(self.num_tokens)
        x = _rms("merge_norm")(x).reshape(-1, side, side, self.width)
        x = nn.Conv(self.width, (2, 2), 2, "VALID", use_bias=False, name="merge")(x)
        return x.reshape(len(x), -1, self.width)

    def parted(self, x: Float[Array, "B M D"]) -> Float[Array, "B L D"]:
        """Turn one token into four neighbours.

        A transposed convolution whose windows just touch.
        """
        half = math.isqrt(self.num_tokens) // 2
        x = nn.DenseGeneral((2, 2, self.width), use_bias=False, name="part")(_rms("part_norm")(x))
        x = x.reshape(-1, half, half, 2, 2, self.width).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(len(x), self.num_tokens, self.width)


def build(
    *,
    num_tokens: int = 4096,
    codebook_size: int = 8192,
    vocabulary: int = 8256,
    width: int = 1024,
    depth: int = 14,
    single_depth: int = 28,
    heads: int = 8,
    mlp_dim: int = 4096,
    text_length: int = 77,
    text_dim: int = 1024,
    pooled_dim: int = 1024,
    rope_dims: Sequence[int] = (16, 56, 56),
    merge: bool = True,
    timestep: str = "zero",
    compute: Compute = Compute(),
) -> Network:
    """Return a Meissonic transformer.

    The defaults are the released one's, 1,006,946,304 parameters.

    Args:
        num_tokens: L, image tokens of a square grid; no parameter depends on it.
        codebook_size: codes. Tokens say codebook_size for [MASK], as with every network; here that
            is the last row of the table (8255), the rows between them are unused.
        vocabulary: rows of the table.
        width: D.
        depth: double blocks.
        single_depth: single blocks.
        heads: attention heads; must divide `width`.
        mlp_dim: hidden size of the feed-forwards.
        text_length: T, text tokens, padding included.
        text_dim: width of the text states.
        pooled_dim: width of the pooled text.
        rope_dims: even numbers that add up to a head's width: how much of it turns with each axis.
        merge: whether 2 by 2 tokens are one inside the blocks; not in the models for 512 pixels.
        timestep: one of TIMESTEPS, where the condition does not say it.
        compute: how it is computed, which `config` says nothing of.

    Returns:
        The network. Its condition is a dict: "states" [B, T, text_dim] and "pooled" [B, pooled_dim]
        of the text encoder, "micro" [B, 5], width and height in pixels, two coordinates of the crop
        and an aesthetic score, and where a sampler counts its steps "timestep" [B], which is
        multiplied by 1000. There is no null label: another prompt is the unconditional branch.
        [MASK] has no logit. It has no dropout.

    Raises:
        InputError: if the sizes do not fit each other.

    Source: viiika/Meissonic, src/transformer.py; noise after `embed_out`: Di[M]O's fork of it.
    """
    # Over 80 lines, for the names and meanings of 16 sizes.
    config = {"name": "meissonic", **locals(), "rope_dims": list(rope_dims)}
    del config["compute"]
    _check(config)
    other = ("name", "text_length", "text_dim", "pooled_dim", "timestep")
    sizes = {k: v for k, v in config.items() if k not in other}
    module = MeissonicModule(**{**sizes, "rope_dims": tuple(rope_dims)}, compute=compute)
    condition = {
        "states": jax.ShapeDtypeStruct((text_length, text_dim), jnp.float32),
        "pooled": jax.ShapeDtypeStruct((pooled_dim,), jnp.float32),
        "micro": jax.ShapeDtypeStruct((5,), jnp.float32),
    }

    def init(key: Key[Array, ""]) -> Any:
        zeros = [jnp.zeros((1, *condition[name].shape), jnp.float32) for name in condition]
        ids = jnp.zeros((1, num_tokens), jnp.int32)
        return module.init(key, ids, *zeros, jnp.zeros((1,), jnp.float32), None)["params"]

    def apply(
        params: Any,
        tokens: Int[Array, "B L"],
        condition: Any,
        *,
        perturb: Callable | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L V"]:
        del dropout_key
        states, pooled, micro, time = _parts(condition)
        masked = tokens == codebook_size
        if time is None:
            time = masked.mean(1, dtype=jnp.float32) * (timestep == "ratio")
        ids = jnp.where(masked, vocabulary - 1, tokens)
        return module.bind({"params": params})(ids, states, pooled, micro, time, perturb)

    return Network(config, num_tokens, codebook_size, 0, init, apply, condition=condition)


def _parts(condition: Any) -> tuple[Array, Array, Array, Array | None]:
    """Return states, pooled text, micro-conditions and the time, if it is given."""
    names = set(condition) if isinstance(condition, Mapping) else {type(condition).__name__}
    if not {"states", "pooled", "micro"} <= names <= {"states", "pooled", "micro", "timestep"}:
        raise InputError(
            f"the condition has {', '.join(sorted(names))}; Meissonic takes text features: a dict "
            "of states, pooled, micro and perhaps timestep"
        )
    time = condition.get("timestep")
    if time is not None:
        time = jnp.asarray(time, jnp.float32)
    return condition["states"], condition["pooled"], condition["micro"], time


def _check(config: Mapping[str, Any]) -> None:
    """Raise InputError where `build` would."""
    width, heads, rope = config["width"], config["heads"], config["rope_dims"]
    side = math.isqrt(config["num_tokens"])
    rows = config["codebook_size"]
    for name, holds, expected in (
        ("heads", width % heads == 0, f"a divisor of the width {width}"),
        (
            "rope_dims",
            len(rope) == 3 and sum(rope) * heads == width and not any(d % 2 for d in rope),
            f"three even numbers whose sum is {width} / {heads}, a head's width",
        ),
        ("num_tokens", side**2 == config["num_tokens"], "a square number"),
        ("num_tokens", not (config["merge"] and side % 2), "the square of an even number"),
        ("vocabulary", config["vocabulary"] > rows, f"more than the {rows} codes, for [MASK]"),
        ("timestep", config["timestep"] in TIMESTEPS, f"one of {', '.join(TIMESTEPS)}"),
    ):
        if not holds:
            raise InputError(
                f"{name} of the network meissonic is {config[name]!r}, expected {expected}"
            )
