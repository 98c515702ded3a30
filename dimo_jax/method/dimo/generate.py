"""One-step generation: x_init -> logits -> tokens. Training and sampling both go through here.

Axes: B batch, L tokens, V vocabulary.
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float, Int, Key

from dimo_jax.method.dimo import initialization
from dimo_jax.method.masked import guidance
from dimo_jax.method.masked.denoise import Apply


@dataclasses.dataclass(frozen=True)
class GeneratorSettings:
    """What a one-step generator starts from and how its tokens are drawn.

    Attributes:
        num_tokens: L.
        codebook_size: image codes.
        mask_id: the id of [MASK].
        ratio_low: smallest initial mask ratio r.
        ratio_high: largest; equal to ratio_low for a fixed r.
        sigma: deviation of the embedding noise, in [0, 1].
        temperature: divides the logits before a token is drawn.
        top_k: 0 for all.
        top_p: 1 for all.
    """

    num_tokens: int
    codebook_size: int
    mask_id: int
    ratio_low: float
    ratio_high: float
    sigma: float
    temperature: float
    top_k: int = 0
    top_p: float = 1.0


def initial_state(
    keys: Key[Array, "B"], settings: GeneratorSettings
) -> tuple[Int[Array, "B L"], Key[Array, "B"]]:
    """x_init and the keys of the embedding noise that belongs to it.

    Args:
        keys: [B].
        settings: ratio range and sizes.

    Returns:
        tokens [B, L] int32, noise keys [B].
    """
    triples = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    ratio = initialization.draw_ratio(triples[:, 0], settings.ratio_low, settings.ratio_high)
    tokens = initialization.initial_tokens(
        triples[:, 1],
        ratio,
        num_tokens=settings.num_tokens,
        codebook_size=settings.codebook_size,
        mask_id=settings.mask_id,
    )
    return tokens, triples[:, 2]


def generator_logits(
    apply: Apply,
    params: Any,
    start: tuple[Int[Array, "B L"], Key[Array, "B"]],
    condition: Any,
    sigma: Array | float,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B L V"]:
    """z_theta(x_init), with noise on the image tokens' embeddings.

    Args:
        apply: the network.
        params: its parameters; the only argument worth a gradient.
        start: what initial_state returned.
        condition: the network's condition.
        sigma: deviation of the noise; may be traced. A Python 0.0 leaves the noise out.
        dropout_key: None for no dropout.

    Returns:
        [B, L, V] float32.
    """
    tokens, noise_keys = start

    def perturb(embeddings: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return initialization.perturb_embeddings(noise_keys, embeddings, sigma)

    quiet = isinstance(sigma, float) and sigma == 0.0
    return apply(
        params, tokens, condition, perturb=None if quiet else perturb, dropout_key=dropout_key
    )


def sample_tokens(
    keys: Key[Array, "B"],
    logits: Float[Array, "B L V"],
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Int[Array, "B L"]:
    """Draws every position independently from softmax(logits / temperature).

    Args:
        keys: [B].
        logits: [B, L, V].
        temperature: above 0.
        top_k: 0 for all.
        top_p: 1 for all.

    Returns:
        [B, L] int32.
    """
    logits = guidance.shape_logits(logits, temperature, top_k, top_p)
    return jax.vmap(jax.random.categorical)(keys, logits)


def generate(
    apply: Apply,
    params: Any,
    keys: Key[Array, "B"],
    condition: Any,
    settings: GeneratorSettings,
) -> Int[Array, "B L"]:
    """Tokens in one network call.

    Args:
        apply: the network.
        params: the generator's parameters, usually their EMA.
        keys: [B], one for each image.
        condition: the network's condition for these B images.
        settings: as in training.

    Returns:
        [B, L] int32. With a network that predicts [MASK] too, its id may occur; decoding clamps.

    Source: Di[M]O sections 4.2 and 4.3.
    """
    pairs = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    start = initial_state(pairs[:, 0], settings)
    logits = generator_logits(apply, params, start, condition, settings.sigma)
    return sample_tokens(pairs[:, 1], logits, settings.temperature, settings.top_k, settings.top_p)
