"""A sample of the generator in training: its random streams, its logits, its tokens.

Axes: B batch, L tokens, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key

from dimo_jax.common import rng
from dimo_jax.method.dimo.generate import generator_logits, initial_state, sample_tokens
from dimo_jax.method.dimo.settings import DistillSettings
from dimo_jax.method.masked import schedules
from dimo_jax.method.masked.denoise import Apply


class Drawn(NamedTuple):
    """A sample of the generator; None for what is not kept.

    Attributes:
        logits: z_theta(x_init) [B, L, V].
        tokens: x_theta [B, L] int32.
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


def sample_logits(
    apply: Apply,
    params: Any,
    streams: Streams,
    name: str,
    condition: Any,
    settings: DistillSettings,
) -> Float[Array, "B L V"]:
    """Compute z_theta of a new x_init, both in the streams of that name.

    Args:
        apply: the generator's network.
        params: its parameters.
        streams: of these examples.
        name: "generator", or "aux0" to "aux<K-1>" for the auxiliary's fresh samples.
        condition: leading axis B.
        settings: of the generator's start, and of its noise's warm-up.
    """
    sigma: Any = settings.generator.sigma
    if settings.sigma_schedule != "fixed":
        sigma = sigma * schedules.warmup(
            streams.step, settings.sigma_schedule, settings.sigma_warmup_steps
        )
    start = initial_state(streams.examples(f"{name}_init"), settings.generator)
    dropout_key = streams.batch(f"{name}_dropout", settings.generator_dropout)
    return generator_logits(apply, params, start, condition, sigma, dropout_key)


@jax.named_scope("sampling")
def draw_tokens(
    logits: Float[Array, "B L V"], streams: Streams, name: str, settings: DistillSettings
) -> Int[Array, "B L"]:
    """Draws x_theta."""
    chosen, keys = settings.generator, streams.examples(f"{name}_sample")
    return sample_tokens(keys, logits, chosen.temperature, chosen.top_k, chosen.top_p)


def soft_targets(
    logits: Float[Array, "B L V"] | None, settings: DistillSettings
) -> Float[Array, "B L V"] | None:
    """Give the generator's probabilities, where the auxiliary learns from them."""
    if logits is None or not settings.aux.soft_weight:
        return None
    return jax.nn.softmax(logits / settings.generator.temperature)
