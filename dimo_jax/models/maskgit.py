"""The MaskGit transformer of MaskGit-PyTorch, the Di[M]O ImageNet teacher (any size).

Source: valeoai/Maskgit-pytorch v1.0 `MaskTransformer`. One table embeds codes, [MASK], classes and
the null class; the class token stands last; the output matrix is the table itself, with a bias for
each position. di4c's student (sony/di4c) is the same network with one more token, made of a number
lambda in [0, 1): for each lambda a product of marginals, over all of them a mixture of products.
Axes: B batch, L image tokens, N = L + 1 with the class token, L + 2 with the mixture token too,
D width, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dimo_jax.common.errors import InputError
from dimo_jax.models import blocks
from dimo_jax.models.attention import AttentionFn, SelfAttention, attention_of
from dimo_jax.models.layers import LayerNorm, Projection, gelu
from dimo_jax.models.network import Compute, Network, from_module

MIXTURE_FEATURES = 128  # of lambda: as many sines as cosines


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


def mixture_features(mixture: Float[Array, "B"]) -> Float[Array, "B F"]:
    """Return sines, then cosines, of 1000 lambda at frequencies from 1 down to 1e-4.

    In float32 whatever the run's dtype: the argument reaches 1000, where bfloat16 has steps of 4.
    There a frequency's last bit counts as 3e-5: the exponents are rounded to float32, their
    exponentials once, as PyTorch does it.

    Source: sony/di4c; the exponent's divisor is F / 2 - 1, and not F / 2 as in other embeddings.
    """
    half = MIXTURE_FEATURES // 2
    exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(1e4) / (half - 1))
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = (1000 * mixture.astype(jnp.float32))[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _as_torch(x: Float[Array, "B I"], features: int, name: str) -> Float[Array, "B O"]:
    """Apply torch.nn.Linear with its own initial values, uniform within 1 / sqrt(I)."""
    bound = x.shape[-1] ** -0.5
    return nn.Dense(
        features,
        kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        bias_init=lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound),
        name=name,
    )(x)


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
    mixture_dim: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B L"],
        condition: Int[Array, "B"] | Mapping[str, Any],
        perturb: Callable | None,
        deterministic: bool,
    ) -> Float[Array, "B L V"]:
        """Logits of the image positions over the codes (and [MASK] if it is predicted)."""
        given = condition if isinstance(condition, Mapping) else {"label": condition}
        labels, mixture = given["label"], given.get("mixture")
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
        if self.mixture_dim and self.is_initializing():
            mixture = jnp.zeros(len(tokens))
        if mixture is not None:  # without a position of its own
            y = _as_torch(mixture_features(mixture).astype(x.dtype), self.mixture_dim, "mixture_in")
            y = _as_torch(gelu(y), self.width, "mixture_out")
            x = jnp.concatenate([x, y[:, None]], axis=1)

        x = _dense(drop(_norm(1e-12, "first_norm_in")(x)), self.width, "first_in")
        x = drop(_norm(1e-12, "first_norm_out")(gelu(x)))
        x = _dense(x, self.width, "first_out")
        block = functools.partial(Block, self.heads, self.mlp_dim, self.dropout, attention_of(self))
        x = blocks.run_blocks(self, block, self.depth, x, self.compute, deterministic=deterministic)
        # Class and mixture are not predicted: leaving them out here changes no image logit.
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
    mixture_dim: int = 0,
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
        mixture_dim: hidden width of the projection of lambda, 512 in di4c; 0: there is no mixture.
        compute: how it is computed, which `config` says nothing of.

    Returns:
        The network. Its condition is labels [B] int32; num_classes is the null label. With a
        mixture it may be {"label": [B], "mixture": lambda [B] float32} too; labels alone make it
        the same network without the token, a product of marginals.

    Raises:
        InputError: if the heads do not divide the width.

    Source: MaskGit-PyTorch v1.0, Network/transformer.py; embedding noise: Di[M]O section 4.3; the
    mixture: Di4C (arXiv 2410.08709), its MaskGIT student.
    """
    config = {"name": "maskgit", **locals()}
    del config["compute"]
    if width % heads:
        raise InputError(f"width {width} is not divisible by {heads} heads; change one of them")
    sizes = {k: v for k, v in config.items() if k != "name"}
    if not mixture_dim:  # as in the bundles that were written before there was one
        del config["mixture_dim"]
    network = from_module(MaskGitModule(**sizes, compute=compute), config)
    return dataclasses.replace(network, has_mixture=bool(mixture_dim))
