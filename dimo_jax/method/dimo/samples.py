"""A sample of the generator in training: its random streams, its logits, its tokens.

Axes: B batch, L tokens, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dimo_jax.common import rng
from dimo_jax.method.dimo import generate
from dimo_jax.method.dimo.generate import Before
from dimo_jax.method.dimo.settings import DistillSettings
from dimo_jax.method.masked import schedules
from dimo_jax.method.masked.denoise import Apply


class Drawn(NamedTuple):
    """A sample of the generator; None for what is not kept.

    Attributes:
        logits: z_theta(x_init) [B, L, V].
        tokens: x_theta [B, L] int32, of the step that is trained.
    """

    logits: Any = None
    tokens: Any = None


class Streams:
    """Random keys of one step for some examples, by the stream's name."""

    def __init__(self, seed: Int[Array, ""], step: Int[Array, ""], index: Int[Array, "B"]):
        self._seed, self.step, self._index = seed, step, index

    def examples(self, name: str) -> Key[Array, "B"]:
        """Return one key for each example."""
        return rng.example_keys(rng.stream_key(self._seed, name, self.step), self._index)

    def batch(self, name: str, used: bool) -> Key[Array, ""] | None:
        """Return one key for all examples, another one for each microbatch.

        None where it is not used.
        """
        if not used:
            return None
        return jax.random.fold_in(rng.stream_key(self._seed, name, self.step), self._index[0])


def draw_step(streams: Streams, name: str, settings: DistillSettings) -> Int[Array, "B"] | None:
    """Draws which of its steps each example is trained in, 1 to K; None where there is one."""
    num_steps = settings.generator.num_steps
    if num_steps == 1:
        return None
    shares = jnp.asarray(settings.step_shares or (1.0,) * num_steps, jnp.float32)
    draw = lambda key: jax.random.categorical(key, jnp.log(shares)) + 1  # noqa: E731
    return jax.vmap(draw)(streams.examples(f"{name}_step"))


def drawn_positions(
    streams: Streams, name: str, step: Int[Array, "B"], settings: DistillSettings
) -> Bool[Array, "B L"]:
    """Return what that step of `start` draws, before any network runs."""
    keys, chosen = streams.examples(f"{name}_steps"), settings.generator
    mask = generate.masked_before(keys, step, chosen)
    return jnp.ones_like(mask) if chosen.redraw else mask


def start(
    apply: Apply,
    params: Any,
    streams: Streams,
    name: str,
    condition: Any,
    settings: DistillSettings,
    step: Int[Array, "B"] | None = None,
) -> Before:
    """Draws what a step starts from: x_init or the generator's own tokens (backward simulation).

    Args:
        apply: the generator's network.
        params: its parameters, no gradient of which may be taken here.
        streams: of these examples.
        name: "generator", or "aux0" to "aux<K-1>" for the auxiliary's fresh samples.
        condition: leading axis B.
        settings: of the generator's start and steps, and of its noise's warm-up.
        step: of `draw_step`; None: the last.

    Source of the simulation: DMD2 (arXiv 2405.14867) section 4.5.
    """
    sigmas: Any = (settings.generator.sigma, settings.generator.step_sigma)
    if settings.sigma_schedule != "fixed":
        grown = schedules.warmup(streams.step, settings.sigma_schedule, settings.sigma_warmup_steps)
        sigmas = tuple(sigma * grown for sigma in sigmas)
    keys = (streams.examples(f"{name}_init"), streams.examples(f"{name}_steps"))
    return generate.before_step(apply, params, keys, condition, settings.generator, sigmas, step)


def sample_logits(
    apply: Apply,
    params: Any,
    streams: Streams,
    name: str,
    before: Before,
    condition: Any,
    settings: DistillSettings,
) -> Float[Array, "B L V"]:
    """Compute z_theta of what `start` drew, in the streams of that name."""
    dropout_key = streams.batch(f"{name}_dropout", settings.generator_dropout)
    drawn = (before.tokens, before.noise_keys)
    return generate.generator_logits(apply, params, drawn, condition, before.sigma, dropout_key)


@jax.named_scope("sampling")
def draw_tokens(
    logits: Float[Array, "B L V"],
    streams: Streams,
    name: str,
    before: Before,
    settings: DistillSettings,
) -> Int[Array, "B L"]:
    """Draws x_theta of a step, with what it carries over."""
    return generate.draw(streams.examples(f"{name}_sample"), logits, before, settings.generator)


def soft_targets(
    logits: Float[Array, "B L V"] | None, settings: DistillSettings
) -> Float[Array, "B L V"] | None:
    """Give the generator's probabilities, where the auxiliary learns from them."""
    if logits is None or not settings.aux.soft_weight:
        return None
    return jax.nn.softmax(logits / settings.generator.temperature)
