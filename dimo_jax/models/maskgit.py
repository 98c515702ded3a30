"""The MaskGit transformer of MaskGit-PyTorch, the Di[M]O ImageNet teacher (any size).

Source: valeoai/Maskgit-pytorch v1.0 `MaskTransformer`. One table embeds codes, [MASK], classes and
the null class; the class token stands last; the output matrix is the table itself, with a bias for
each position. Axes: B batch, L image tokens, N = L + 1 with the class token, D width, V vocabulary.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dimo_jax.common.errors import InputError
from dimo_jax.models import blocks
from dimo_jax.models.attention import AttentionFn, SelfAttention, attention_of
from dimo_jax.models.layers import LayerNorm, Projection, gelu
from dimo_jax.models.network import Compute, Network, from_module


def _norm(epsilon: float, name: str) -> LayerNorm:
    return LayerNorm(epsilon=epsilon, name=name)


def _dense(x: Float[Array, "B N I"], features: int, name: str) -> Float[Array, "B N O"]:
    dense = Projection((x.shape[-1], features), (features,), name=name)
    return dense(x.reshape(-1, x.shape[-1]), x.shape[:-1])


class Block(nn.Module):
    """Pre-norm attention and feed-forward, both residual; norms at PyTorch's default 1e-5."""

    heads: int
    mlp_dim: int
    dropout: float
    attention: AttentionFn

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], deterministic: bool) -> Float[Array, "B N D"]:
        """Apply one layer; dropout acts on the attention probabilities and in the feed-forward."""
        attention = SelfAttention(self.heads, self.dropout, self.attention, name="attention")
        x = x + attention(_norm(1e-5, "attention_norm")(x), deterministic)
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        y = gelu(_dense(_norm(1e-5, "mlp_norm")(x), self.mlp_dim, "mlp_in"))
        return x + drop(_dense(drop(y), x.shape[-1], "mlp_out"))


class MaskGitModule(nn.Module):
    """The parameters and the forward pass; see `build` for the sizes."""

    num_tokens: int
    codebook_size: int
    num_classes: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    dropout: float
    predict_mask_id: bool
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B L"],
        labels: Int[Array, "B"],
        perturb: Callable | None,
        deterministic: bool,
    ) -> Float[Array, "B L V"]:
        """Logits of the image positions over the codes (and [MASK] if it is predicted)."""
        vocabulary = self.codebook_size + 1 + self.num_classes + 1
        normal = nn.initializers.truncated_normal(0.02)
        length = self.num_tokens + 1
        table = self.param("token_embedding", normal, (vocabulary, self.width))
        positions = self.param("position_embedding", normal, (length, self.width))
        bias = self.param("output_bias", nn.initializers.zeros, (length, vocabulary))
        drop = nn.Dropout(self.dropout, deterministic=deterministic)

        image = table[tokens]
        if perturb is not None:
            image = perturb(image)
        label = table[self.codebook_size + 1 + labels][:, None]
        x = jnp.concatenate([image, label], axis=1) + positions[None]

        x = _dense(drop(_norm(1e-12, "first_norm_in")(x)), self.width, "first_in")
        x = drop(_norm(1e-12, "first_norm_out")(gelu(x)))
        x = _dense(x, self.width, "first_out")
        block = functools.partial(Block, self.heads, self.mlp_dim, self.dropout, attention_of(self))
        x = blocks.run_blocks(self, block, self.depth, x, self.compute, deterministic=deterministic)
        # The class position is not predicted: leaving it out here changes no image logit.
        x = drop(_norm(1e-12, "last_norm_in")(x[:, : self.num_tokens]))
        x = _norm(1e-12, "last_norm_out")(gelu(_dense(x, self.width, "last")))
        predicted = self.codebook_size + int(self.predict_mask_id)
        return x @ table[:predicted].T + bias[None, : self.num_tokens, :predicted]


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
    predict_mask_id: bool,
    compute: Compute = Compute(),
) -> Network:
    """Return a MaskGit transformer.

    Args:
        num_tokens: L, image tokens.
        codebook_size: codes; [MASK] is the next id, the classes follow it, then the null class.
        num_classes: conditions.
        width: D.
        depth: blocks.
        heads: attention heads; must divide `width`.
        mlp_dim: hidden size of the feed-forward.
        dropout: rate everywhere, attention probabilities included.
        predict_mask_id: whether [MASK] has a logit, as in the published checkpoints, whose
            softmax runs over 1025 ids. Decoding clamps it to the last code.
        compute: how it is computed, which `config` says nothing of.

    Returns:
        The network. Its condition is labels [B] int32; num_classes is the null label.

    Raises:
        InputError: if the heads do not divide the width.

    Source: MaskGit-PyTorch v1.0, Network/transformer.py; embedding noise: Di[M]O section 4.3.
    """
    config = {"name": "maskgit", **locals()}
    del config["compute"]
    if width % heads:
        raise InputError(f"width {width} is not divisible by {heads} heads; change one of them")
    sizes = {k: v for k, v in config.items() if k != "name"}
    return from_module(MaskGitModule(**sizes, compute=compute), config)
