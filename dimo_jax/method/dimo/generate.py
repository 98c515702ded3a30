"""Generation: x_init -> logits -> tokens. Training and sampling both go through here.

In one step, or in K: step k starts from the tokens of step k - 1, of which a share r_k is masked
again. K > 1 is no paper's: docs/few_steps.md says what it is worth.

Axes: B batch, L tokens, V vocabulary, K steps.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dimo_jax.method.dimo import initialization
from dimo_jax.method.masked import guidance, masking
from dimo_jax.method.masked.denoise import Apply


@dataclasses.dataclass(frozen=True)
class GeneratorSettings:
    """What a generator starts from and how its tokens are drawn.

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
        step_ratios: (r_2, ..., r_K), the mask ratio before each later step; empty for one step.
        step_sigma: the embedding noise of later steps.
        redraw: whether a later step draws every token anew; else those that were not masked again
            are carried over.
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
    step_ratios: tuple[float, ...] = ()
    step_sigma: float = 0.0
    redraw: bool = False

    @property
    def num_steps(self) -> int:
        """K, the network calls of a sample."""
        return 1 + len(self.step_ratios)


class Before(NamedTuple):
    """What a step starts from; of any type, as a scan carries it.

    Attributes:
        tokens: [B, L] int32, [MASK] where one is to be predicted.
        noise_keys: [B].
        sigma: of the embedding noise, a scalar or [B].
        drawn: [B, L] bool, the positions that the step draws; None: all.
    """

    tokens: Any
    noise_keys: Any
    sigma: Any
    drawn: Any = None


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
        sigma: deviation of the noise, of all or of each [B]; may be traced. A Python 0.0 leaves the
            noise out.
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


def masked_before(
    step_keys: Key[Array, "B"], step: Int[Array, "B"], settings: GeneratorSettings
) -> Bool[Array, "B L"]:
    """Return the positions that are masked before a later step; before step 1 all are True.

    Args:
        step_keys: [B], as of `before_step`.
        step: [B], 1 .. K.
        settings: the ratios.
    """
    ratios = jnp.asarray((1.0, *settings.step_ratios), jnp.float32)
    keys = _keys_of(step_keys, step)[:, 0]
    return masking.exact_count_mask(keys, ratios[step - 1], settings.num_tokens)


def _keys_of(step_keys: Key[Array, "B"], step: Int[Array, "B"]) -> Key[Array, "B 3"]:
    """Keys of a step: of the mask before it, of its noise, of its tokens where it is not the last.

    Numbered from 2 on: 0 and 1 would be the keys that `generate` splits off.
    """
    keys = jax.vmap(jax.random.fold_in)(step_keys, step + 1)
    return jax.vmap(lambda key: jax.random.split(key, 3))(keys)


def before_step(
    apply: Apply,
    params: Any,
    keys: tuple[Key[Array, "B"], Key[Array, "B"]],
    condition: Any,
    settings: GeneratorSettings,
    sigmas: tuple[Array | float, Array | float],
    step: Int[Array, "B"] | None = None,
) -> Before:
    """Run the steps before one: nothing in the first, whose start is x_init.

    Args:
        apply: the network.
        params: its parameters.
        keys: of x_init, and of the steps; of the latter `fold_in` makes one for each.
        condition: leading axis B.
        settings: the ratios.
        sigmas: of the first step and of later ones; may be traced.
        step: [B], which step of each example, 1 .. K; None: the last.

    Returns:
        What that step starts from. In training no gradient may go through it: there the K - 1 calls
        before the last step are made for every example, since one program serves all.
    """
    tokens, noise_keys = initial_state(keys[0], settings)
    if not settings.step_ratios:
        return Before(tokens, noise_keys, sigmas[0])
    reached = jnp.full(tokens.shape[:1], settings.num_steps) if step is None else step

    def at(number: Int[Array, "B"], tokens: Array, drawn: Array) -> Before:
        sigma = jnp.where(number == 1, *(jnp.asarray(x, jnp.float32) for x in sigmas))
        return Before(tokens, _keys_of(keys[1], number)[:, 1], sigma, drawn)

    def run(carry: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
        numbers = jnp.full_like(reached, number)
        before = at(numbers, *carry)
        start = (before.tokens, before.noise_keys)
        logits = generator_logits(apply, params, start, condition, before.sigma)
        tokens = draw(_keys_of(keys[1], numbers)[:, 2], logits, before, settings)
        mask = masked_before(keys[1], numbers + 1, settings)
        after = (
            masking.apply_mask(tokens, mask, settings.mask_id),
            jnp.ones_like(mask) if settings.redraw else mask,
        )
        goes_on = (number < reached)[:, None]
        return jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), after, carry), None

    # One program for all steps but the last, however many there are.
    with jax.named_scope("earlier_steps"):
        everywhere = jnp.ones(tokens.shape, bool)
        found, _ = jax.lax.scan(run, (tokens, everywhere), jnp.arange(1, settings.num_steps))
    return at(reached, *found)


def draw(
    keys: Key[Array, "B"],
    logits: Float[Array, "B L V"],
    before: Before,
    settings: GeneratorSettings,
) -> Int[Array, "B L"]:
    """Draws the tokens of a step; those that it does not draw are the ones that it started from."""
    tokens = sample_tokens(keys, logits, settings.temperature, settings.top_k, settings.top_p)
    return tokens if before.drawn is None else jnp.where(before.drawn, tokens, before.tokens)


def generate(
    apply: Apply,
    params: Any,
    keys: Key[Array, "B"],
    condition: Any,
    settings: GeneratorSettings,
) -> Int[Array, "B L"]:
    """Tokens in K network calls, usually one.

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
    sigmas = (settings.sigma, settings.step_sigma)
    before = before_step(apply, params, (pairs[:, 0], keys), condition, settings, sigmas)
    start = (before.tokens, before.noise_keys)
    logits = generator_logits(apply, params, start, condition, before.sigma)
    return draw(pairs[:, 1], logits, before, settings)
