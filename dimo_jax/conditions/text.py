"""Prompts as the condition of a network with text: CLIP's text tower, and what goes with it.

Axes: N prompts, T ids of a text, E width of the tower, P projection.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dimo_jax.conditions.clip_tokenizer import ClipTokenizer
from dimo_jax.errors import InputError
from dimo_jax.models.clip import Clip
from dimo_jax.models.meissonic import MICRO_CONDITIONS


class TextConditions:
    """The text tower with its parameters; called with prompts.

    Args:
        network: CLIP, of which the text tower is used.
        params: its parameters.
        tokenizer: the one of the tower.
        expected: shapes and dtypes of one example's condition, as the token network says them.
        batch_size: prompts in a call; a smaller rest is filled up to it.

    Raises:
        InputError: the tower's features are not what the network takes.
    """

    def __init__(
        self,
        network: Clip,
        params: Any,
        tokenizer: ClipTokenizer,
        expected: Any,
        batch_size: int = 16,
    ):
        self._params, self._tokenizer, self._batch_size = params, tokenizer, batch_size

        def encode(given: Any, ids: jax.Array) -> dict[str, jax.Array]:
            found = network.encode_text(given, ids)
            return {"states": found["penultimate"], "pooled": found["projected"]}

        self._encode = jax.jit(encode)
        ids = jax.ShapeDtypeStruct((1, network.context), np.int32)
        made = jax.eval_shape(encode, params, ids)
        for name, x in made.items():
            if x.shape[1:] != expected[name].shape:
                raise InputError(
                    f"the text encoder gives {name} of {list(x.shape[1:])}, the network takes "
                    f"{list(expected[name].shape)}; give the encoder that it was trained with"
                )

    def __call__(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """The conditions of some prompts.

        Args:
            prompts: of any length; what goes beyond the tower's context is cut off, an empty one
                is the negative prompt of Meissonic's pipeline.

        Returns:
            {"states" [N, T, E], "pooled" [N, P], "micro" [N, 5]} float32.
        """
        ids, size = self._tokenizer(prompts), self._batch_size
        padded = ids[np.minimum(np.arange(size * math.ceil(len(ids) / size)), len(ids) - 1)]
        parts = [
            jax.device_get(self._encode(self._params, padded[start : start + size]))
            for start in range(0, len(padded), size)
        ]
        found = jax.tree.map(lambda *x: np.concatenate(x)[: len(ids)].astype(np.float32), *parts)
        return {**found, "micro": np.tile(np.float32(MICRO_CONDITIONS), (len(ids), 1))}
