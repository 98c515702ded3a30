"""Google's original MaskGIT transformer: a post-norm BERT, the class token first, no null class.

Source: google-research/maskgit, Chang et al. 2022, section 3. One table embeds codes, classes and,
in its last row, [MASK] (the original's id -1, which its lookup wraps around); the output matrix is
the table itself with one bias for all positions. It was never trained without a class, so guidance
must be 1 everywhere: there is no unconditional branch. Axes: B batch, L image tokens, N = L + 1
with the class token, D width, V codes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from dimo_jax.common.errors import InputError
from dimo_jax.models import blocks
from dimo_jax.models.attention import AttentionFn, SelfAttention, attention_of
from dimo_jax.models.layers import LayerNorm, gelu
from dimo_jax.models.network import Compute, Network, from_module

# Flax's own GELU of that time: the tanh form, in every place.
_gelu = functools.partial(gelu, approximate=True)


def _norm(name: str) -> LayerNorm:
    # Unlike the networks from PyTorch: these weights were trained with Flax's fast variance.
    return LayerNorm(epsilon=1e-12, use_fast_variance=True, name=name)


class Block(nn.Module):
    """Attention and feed-forward, each added to its input and then normalised (post-norm)."""

    heads: int
    mlp_dim: int
    dropout: float
    attention: AttentionFn

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], deterministic: bool) -> Float[Array, "B N D"]:
        """Apply one layer; dropout acts on attention probabilities and on both branches."""
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        attention = SelfAttention(self.heads, self.dropout, self.attention, name="attention")
        x = _norm("attention_norm")(x + drop(attention(x, deterministic)))
        y = _gelu(nn.Dense(self.mlp_dim, name="mlp_in")(x))
        return _norm("mlp_norm")(x + drop(nn.Dense(x.shape[-1], name="mlp_out")(y)))


class GoogleMaskGitModule(nn.Module):
    """The parameters and the forward pass; see `build` for the sizes."""

    num_tokens: int
    codebook_size: int
    num_classes: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    dropout: float
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B L"],
        labels: Int[Array, "B"],
        perturb: Callable | None,
        deterministic: bool,
    ) -> Float[Array, "B L V"]:
        """Return logits of the image positions over the codes; [MASK] and classes have none."""
        vocabulary = self.codebook_size + self.num_classes + 1
        normal = nn.initializers.truncated_normal(0.02)
        table = self.param("token_embedding", normal, (vocabulary, self.width))
        positions = self.param("position_embedding", normal, (self.num_tokens + 1, self.width))
        bias = self.param("output_bias", nn.initializers.zeros, (vocabulary,))

        # The id after the codes is [MASK] to the rest of the package, but class 0 in this table.
        image = table[jnp.where(tokens == self.codebook_size, vocabulary - 1, tokens)]
        if perturb is not None:
            image = perturb(image)
        label = table[self.codebook_size + labels][:, None]
        x = _norm("first_norm")(jnp.concatenate([label, image], axis=1) + positions[None])
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        block = functools.partial(Block, self.heads, self.mlp_dim, self.dropout, attention_of(self))
        x = blocks.run_blocks(self, block, self.depth, x, self.compute, deterministic=deterministic)
        # The class position is not predicted: leaving it out here changes no image logit.
        x = _norm("last_norm")(_gelu(nn.Dense(self.width, name="last")(x[:, 1:])))
        logits = x @ table[: self.codebook_size].T + bias[None, None, : self.codebook_size]
        # The null label would read the row of [MASK], plausibly and wrongly. Under jit its value
        # cannot be refused, so its logits are made useless instead.
        return jnp.where((labels < self.num_classes)[:, None, None], logits, jnp.nan)


def build(
    *,
    num_tokens: int,
    codebook_size: int,
    num_classes: int,
    width: int,
    depth: int,
    heads: int,
    mlp_dim: int,
    dropout: float,
    compute: Compute = Compute(),
) -> Network:
    """Google's MaskGIT transformer.

    Args:
        num_tokens: L, image tokens.
        codebook_size: codes; the classes follow them in the table, [MASK] is its last row. Tokens
            say codebook_size for [MASK], as with every network.
        num_classes: conditions.
        width: D.
        depth: blocks.
        heads: attention heads; must divide `width`.
        mlp_dim: hidden size of the feed-forward.
        dropout: rate everywhere, attention probabilities included.
        compute: how it is computed, which `config` says nothing of.

    Returns:
        The network. Its condition is labels [B] int32 in 0 .. num_classes - 1. It knows no null
        label: `apply` raises InputError on num_classes, or where it is traced returns NaN for
        that example. So guidance must be 1 and no condition may be dropped in training.

    Raises:
        InputError: if the heads do not divide the width.

    Source: google-research/maskgit, nets/maskgit_transformer.py; embedding noise: Di[M]O
    section 4.3.
    """
    config = {"name": "google_maskgit", **locals()}
    del config["compute"]
    if width % heads:
        raise InputError(f"width {width} is not divisible by {heads} heads; change one of them")
    sizes = {k: v for k, v in config.items() if k != "name"}
    network = from_module(GoogleMaskGitModule(**sizes, compute=compute), config, has_null=False)

    def apply(
        params: Any, tokens: Int[Array, "B L"], condition: Int[Array, "B"], **options: Any
    ) -> Float[Array, "B L V"]:
        traced = isinstance(condition, Tracer)
        if not traced and np.any(np.asarray(condition) >= num_classes):
            raise InputError(
                f"the condition holds the label {int(np.max(condition))}, but Google's MaskGIT has "
                f"the classes 0 .. {num_classes - 1} and no null class: set guidance to 1 and drop "
                "no conditions"
            )
        return network.apply(params, tokens, condition, **options)

    return dataclasses.replace(network, apply=apply)
