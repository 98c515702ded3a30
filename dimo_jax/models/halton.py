"""The transformer of Halton-MaskGIT (v2), tiny to xlarge: the class modulates every block.

Source: valeoai/Halton-MaskGIT, main branch. The class stands in no position of the sequence; one
learned register token does, after the image. The output matrix is the token table, with one bias
for all positions. Axes: B batch, L image tokens, N tokens inside the blocks (a quarter of L where
proj is 2, and the registers), D width, Q = heads * (D // heads), V codes and [MASK].
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dimo_jax.common.errors import InputError
from dimo_jax.models import blocks
from dimo_jax.models.attention import AttentionFn, attention_of
from dimo_jax.models.layers import normalized, swiglu
from dimo_jax.models.network import Compute, Network, from_module

# The released sizes; codebook 16384, 1000 classes, 256 or 576 tokens. mlp_dim is the width inside
# SwiGLU: the original's 4 D, two thirds of it, up to the next multiple of 256.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 384, "depth": 6, "heads": 6, "mlp_dim": 1024},
    "small": {"width": 512, "depth": 12, "heads": 6, "mlp_dim": 1536},
    "base": {"width": 768, "depth": 12, "heads": 12, "mlp_dim": 2048},
    "large": {"width": 1024, "depth": 24, "heads": 16, "mlp_dim": 2816},
    "xlarge": {"width": 1152, "depth": 28, "heads": 16, "mlp_dim": 3072},
}


def _dense(features: int, name: str, bias: bool = False) -> nn.Dense:
    start = nn.initializers.xavier_uniform()
    return nn.Dense(features, use_bias=bias, kernel_init=start, name=name)


def _conv(features: int, side: int, name: str) -> nn.Conv:
    # Patches that do not overlap: kernel and stride are the same.
    start = nn.initializers.xavier_uniform()
    window = (side, side)
    return nn.Conv(features, window, window, "VALID", use_bias=False, kernel_init=start, name=name)


class RMSNorm(nn.Module):
    """x over its root mean square, epsilon 1e-5, statistics in float32; then weight and bias."""

    scale: bool = True
    bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Return the same shape and dtype."""
        x = normalized(x, None, None, 1e-5, False)
        width = x.shape[-1:]
        if self.scale:
            x = x * self.param("scale", nn.initializers.ones, width)[None, None]
        return x + self.param("bias", nn.initializers.zeros, width)[None, None] if self.bias else x


def _modulated(
    x: Float[Array, "B N D"], shift: Float[Array, "B D"], scale: Float[Array, "B D"]
) -> Float[Array, "B N D"]:
    return x * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    """Self-attention without biases; queries and keys are normalised before the heads part."""

    heads: int
    dropout: float
    attention: AttentionFn

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], deterministic: bool) -> Float[Array, "B N D"]:
        """Dropout acts on the probabilities and on the output."""
        batch, length, width = x.shape
        head_dim = width // self.heads
        inner = self.heads * head_dim  # less than D where the heads do not divide it
        query, key, value = (_dense(inner, name)(x) for name in ("query", "key", "value"))
        # One norm over all heads together, without a weight: after the split it would be another.
        query, key = RMSNorm(scale=False)(query), RMSNorm(scale=False)(key)
        shape = (batch, length, self.heads, head_dim)
        on = self.dropout > 0 and not deterministic
        y = self.attention(
            *(part.reshape(shape) for part in (query, key, value)),
            dropout_rng=self.make_rng("dropout") if on else None,
            dropout_rate=self.dropout,
            deterministic=not on,
        )
        # Cast: in bfloat16 the float32 probabilities would carry all that follows up with them.
        y = _dense(width, "out")(y.reshape(batch, length, inner).astype(x.dtype))
        return nn.Dropout(self.dropout, deterministic=deterministic)(y)


class Block(nn.Module):
    """Attention and SwiGLU, both residual, shifted, scaled and gated by the class vector."""

    heads: int
    mlp_dim: int
    dropout: float
    attention: AttentionFn

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], label: Float[Array, "B D"], deterministic: bool
    ) -> Float[Array, "B N D"]:
        """Apply one layer; `label` is SiLU of the class vector."""
        width = x.shape[-1]
        # Zero at the start, so that every block begins as the identity.
        zeros = nn.initializers.zeros
        modulation = nn.Dense(6 * width, kernel_init=zeros, name="modulation")(label)
        # The original calls these gamma, beta, alpha: its gamma is the shift.
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)
        y = _modulated(RMSNorm(name="attention_norm")(x), shift1, scale1)
        attention = Attention(self.heads, self.dropout, self.attention, name="attention")
        x = x + gate1[:, None] * attention(y, deterministic)
        y = _modulated(RMSNorm(name="mlp_norm")(x), shift2, scale2)
        y = swiglu(_dense(self.mlp_dim, "mlp_gate")(y), _dense(self.mlp_dim, "mlp_in")(y))
        y = nn.Dropout(self.dropout, deterministic=deterministic)(y)
        return x + gate2[:, None] * _dense(width, "mlp_out")(y)


class HaltonModule(nn.Module):
    """The parameters and the forward pass; see `build` for the sizes."""

    num_tokens: int
    codebook_size: int
    num_classes: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    dropout: float
    registers: int
    proj: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B L"],
        labels: Int[Array, "B"],
        perturb: Callable | None,
        deterministic: bool,
    ) -> Float[Array, "B L V"]:
        """Logits of the image positions over the codes and [MASK]."""
        normal = nn.initializers.normal(0.02)
        table = self.param("token_embedding", normal, (self.codebook_size + 1, self.width))
        classes = self.param("class_embedding", normal, (self.num_classes + 1, self.width))
        positions = self.param("position_embedding", normal, (self.num_tokens, self.width))
        registers = self.param("register_embedding", normal, (self.registers, self.width))
        bias = self.param("output_bias", nn.initializers.zeros, (self.codebook_size + 1,))

        image = table[tokens]
        if perturb is not None:
            image = perturb(image)
        x = image + positions[None]
        if self.proj == 2:
            x = self.merged(x)
        length = x.shape[1]
        last = jnp.broadcast_to(registers[None], (x.shape[0], *registers.shape))
        x = jnp.concatenate([x, last], axis=1)
        label = nn.silu(classes[labels])
        block = functools.partial(Block, self.heads, self.mlp_dim, self.dropout, attention_of(self))
        x = blocks.run_blocks(
            self, block, self.depth, x, self.compute, label, deterministic=deterministic
        )
        x = x[:, :length]
        if self.proj == 2:
            x = self.parted(x)
        shift, scale = jnp.split(_dense(2 * self.width, "last_modulation", True)(label), 2, axis=-1)
        x = _modulated(RMSNorm(bias=True, name="last_norm")(x), shift, scale)
        return x @ table.T + bias[None, None]

    def merged(self, x: Float[Array, "B L D"]) -> Float[Array, "B M D"]:
        """Four neighbouring tokens become one."""
        side = math.isqrt(self.num_tokens)
        x = _conv(self.width, 2, "in_proj")(x.reshape(-1, side, side, self.width))
        return x.reshape(len(x), -1, self.width)

    def parted(self, x: Float[Array, "B M D"]) -> Float[Array, "B L D"]:
        """Turn one token into four neighbours.

        Channel 4 c + 2 i + j is theirs at row i, column j.
        """
        side = math.isqrt(self.num_tokens) // 2
        x = _conv(4 * self.width, 1, "out_proj")(x.reshape(-1, side, side, self.width))
        x = x.reshape(-1, side, side, self.width, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        return x.reshape(len(x), self.num_tokens, self.width)


def build(
    *,
    num_tokens: int,
    codebook_size: int,
    num_classes: int,
    width: int,
    depth: int,
    heads: int,
    mlp_dim: int,
    dropout: float = 0.0,
    registers: int = 1,
    proj: int = 1,
    compute: Compute = Compute(),
) -> Network:
    """Return a Halton-MaskGIT transformer.

    Args:
        num_tokens: L, image tokens.
        codebook_size: codes; [MASK] is the next id, and has a logit.
        num_classes: conditions; the row after them means "no condition".
        width: D.
        depth: blocks.
        heads: attention heads of D // heads each; they need not divide D (small: 6 of 85 in 512).
        mlp_dim: width inside SwiGLU.
        dropout: rate on the attention's probabilities and output and inside SwiGLU; 0 as released.
        registers: learned tokens after the image.
        proj: 2 merges 2 by 2 tokens into one inside the blocks, for larger grids; else 1.
        compute: how it is computed, which `config` says nothing of.

    Returns:
        The network. Its condition is labels [B] int32; num_classes is the null label.

    Raises:
        InputError: if there are more heads than width, no register, or a grid that proj = 2 does
            not divide.

    Source: Halton-MaskGIT, Network/transformer.py; embedding noise: Di[M]O section 4.3.
    """
    config = {"name": "halton", **locals()}
    del config["compute"]
    if not 1 <= heads <= width:
        raise InputError(f"heads is {heads}, expected 1 to {width}, the width")
    if registers < 1:
        raise InputError(f"registers is {registers}, expected at least 1")
    if proj not in (1, 2):
        raise InputError(f"proj is {proj}, expected 1 or 2")
    if proj == 2 and (math.isqrt(num_tokens) ** 2 != num_tokens or num_tokens % 4):
        raise InputError(f"num_tokens is {num_tokens}, expected the square of an even number")
    sizes = {k: v for k, v in config.items() if k != "name"}
    return from_module(HaltonModule(**sizes, compute=compute), config)
