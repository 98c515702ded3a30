"""Images of prompts: a text encoder, a generator or teacher with text, a decoder."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from dimo_jax import bundles
from dimo_jax.common import images
from dimo_jax.conditions.text import micro_of
from dimo_jax.conditions.text_encoder import TextEncoder
from dimo_jax.generation import drawing
from dimo_jax.generation.benchmark_files import Item, image_keys
from dimo_jax.generation.drawing import Drawn, sampler_of


def takes_text(model: bundles.Bundle) -> bool:
    """Return whether the condition of a bundle's network is text."""
    return isinstance(model.build().condition, dict)


class TextImages:
    """Draws images of prompts; each depends on the seed, its prompt's index and its number.

    Args:
        model: a bundle of kind "generator" or "teacher", of a network with text.
        tokenizer: its tokenizer's.
        encoder: its text encoder, of text_encoder.load_encoder.
        seed: of all images.
        batch_size: images in a batch.
        overrides: as drawing.sampler_of.
        negative_prompt: what a teacher's guidance leads away from.

    Raises:
        InputError: the encoder is not the network's, or the sampler does not take the settings.
    """

    def __init__(
        self,
        model: bundles.Bundle,
        tokenizer: bundles.Bundle,
        encoder: TextEncoder,
        *,
        seed: int,
        batch_size: int,
        overrides: Mapping[str, Any],
        negative_prompt: str = "",
    ):
        self._model = drawing.model_of(model, tokenizer)
        self._sampler = sampler_of(model, overrides)
        self._seed, self._batch_size = seed, batch_size
        size = self._model.tokenizer.image_shape[:2]
        micro = micro_of(model.path, model.provenance, size)
        self._conditions = encoder.conditions(self._model.network, batch_size, micro)
        # The one step of a generator has no guidance.
        is_generator = model.kind == "generator"
        self._negative = None if is_generator else self._conditions([negative_prompt])
        # What decides the images, as plain values.
        self.settings = {
            "model": model.params_hash,
            "tokenizer": tokenizer.params_hash,
            **self._conditions.identity,
            "sampler": drawing.described(model, overrides),
            "negative_prompt": negative_prompt,
        }

    def describe_cut(self, texts: Sequence[str]) -> str | None:
        """Say which prompts are too long; see ClipTokenizer.describe_cut."""
        return self._conditions.tokenizer.describe_cut(texts)

    def draw(self, items: Sequence[Item]) -> Drawn:
        """Draw the images of some (prompt, index, k), in their order."""
        condition = self._conditions([text for text, _, _ in items])
        null = jax.tree.map(lambda x: np.repeat(x, len(items), axis=0), self._negative)
        keys = image_keys(self._seed, items)
        return drawing.draw(self._model, self._sampler, keys, condition, null, self._batch_size)

    def __call__(self, items: Sequence[Item]) -> UInt8[np.ndarray, "B H W 3"]:
        """Return the images alone."""
        return images.to_uint8(self.draw(items).pixels)
