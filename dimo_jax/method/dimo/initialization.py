"""Hybrid token initialization: what the one-step generator starts from.

Some positions are [MASK], the rest uniformly random image tokens, and the embeddings carry a little
Gaussian noise: this shared randomness is what lets independent token choices make a joint.

Axes: B batch, L tokens, D width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dimo_jax.method.masked import masking


def draw_ratio(keys: Key[Array, "B"], low: float, high: float) -> Float[Array, "B"]:
    """Return the initial mask ratio r: fixed where low == high, else uniform in [low, high).

    The released code draws one for the whole batch and device; here each example has its own, so
    that a sample does not depend on its neighbours. The distribution of an example is the same.

    Args:
        keys: [B].
        low: smallest ratio.
        high: largest ratio.

    Returns:
        [B] float32.
    """
    u = jax.vmap(jax.random.uniform)(keys)
    return low + (high - low) * u


def initial_tokens(
    keys: Key[Array, "B"],
    ratio: Float[Array, "B"],
    *,
    num_tokens: int,
    codebook_size: int,
    mask_id: int,
) -> Int[Array, "B L"]:
    """x_init: exactly round(r L) positions [MASK], the others uniform in [0, codebook_size).

    Args:
        keys: [B].
        ratio: [B] the share r of masked positions.
        num_tokens: L.
        codebook_size: number of image codes.
        mask_id: the id of [MASK].

    Returns:
        [B, L] int32.

    Source: Di[M]O section 4.3.
    """
    pairs = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    codes = jax.vmap(lambda key: jax.random.randint(key, (num_tokens,), 0, codebook_size))
    count = jnp.round(ratio * num_tokens).astype(jnp.int32)
    mask = masking.random_subset(pairs[:, 1], count, num_tokens)
    return masking.apply_mask(codes(pairs[:, 0]), mask, mask_id)


def perturb_embeddings(
    keys: Key[Array, "B"],
    embeddings: Float[Array, "B L D"],
    sigma: Float[Array, "B"] | Float[Array, ""] | float,
) -> Float[Array, "B L D"]:
    """Variance-preserving noise sqrt(1 - sigma^2) e + sigma n, n ~ N(0, 1).

    Args:
        keys: [B].
        embeddings: [B, L, D] of the image tokens alone, before positions are added.
        sigma: in [0, 1], of all or of each; may be traced.

    Returns:
        [B, L, D] in the dtype of the embeddings.

    Source: Di[M]O section 4.3; released code, MaskTransformer.forward.
    """
    shape, dtype = embeddings.shape[1:], embeddings.dtype
    noise = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
    sigma = jnp.asarray(sigma, jnp.float32)
    if sigma.ndim:
        sigma = sigma[:, None, None]
    noisy = jnp.sqrt(1 - sigma**2) * embeddings.astype(jnp.float32) + sigma * noise
    return noisy.astype(dtype)
