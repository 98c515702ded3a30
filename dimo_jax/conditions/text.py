"""Prompts as the condition of a network with text: CLIP's text tower, and what goes with it.

Axes: B batch, K batches, N prompts, T ids of a text, E width of the tower, P projection.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dimo_jax.common import trees
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import quoted
from dimo_jax.conditions.clip_tokenizer import ClipTokenizer
from dimo_jax.models import joined
from dimo_jax.models.clip import Clip
from dimo_jax.parallel import mesh
from dimo_jax.parallel.sharding import Layout

TEXT_ENCODER_FOLDER = "text_encoder"  # of its bundle, and in the folders of diffusers
MICRO_CONDITIONS = "micro_conditions"  # in the provenance of a network with text
Features = dict[str, Float[np.ndarray, "N ..."]]


def identity_of(params: Any, tokenizer: ClipTokenizer) -> dict[str, str]:
    """Return what decides a text tower's features: fingerprint of its parameters, and tokenizer.

    Args:
        params: of CLIP.
        tokenizer: the one of the tower.
    """
    return {"text_encoder": trees.fingerprint(params["text"]), **tokenizer.identity}


def micro_of(model: Any, provenance: Mapping[str, Any], size: tuple[int, int]) -> list[float]:
    """Return the five micro-conditions that the network of a bundle is sampled with.

    Those that it was trained with; where the bundle does not know, what the pipeline of Meissonic's
    authors gives: the pixels' size, no crop, an aesthetic score of 6.

    Args:
        model: the bundle, for messages.
        provenance: of it.
        size: height and width in pixels.

    Raises:
        InputError: as `known_micro`.
    """
    height, width = size
    return known_micro(model, provenance) or [float(x) for x in (width, height, 0, 0, 6)]


def known_micro(model: Any, provenance: Mapping[str, Any]) -> list[float] | None:
    """Return the micro-conditions that the network of a bundle was trained with.

    Args:
        model: the bundle, for messages.
        provenance: of it.

    Returns:
        Five numbers; None where the bundle does not know.

    Raises:
        InputError: what it says is not five finite numbers.
    """
    if MICRO_CONDITIONS not in provenance:
        return None
    found = provenance[MICRO_CONDITIONS]
    numbers = found if isinstance(found, list) else []
    if len(numbers) != 5 or not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
        raise InputError(
            f"{model} has {MICRO_CONDITIONS} {quoted(found)} in its provenance, expected five "
            "finite numbers; write the bundle again"
        )
    return [float(x) for x in numbers]


def check_belongs(expected: Any, found: Mapping[str, str], where: Any, model: Any) -> None:
    """Refuse another text encoder than the one that a network was trained with.

    Args:
        expected: what its bundle remembers, the `identity_of` that one; None: nothing.
        found: `identity_of` the encoder.
        where: the encoder's bundle, for messages.
        model: the network's, likewise.

    Raises:
        InputError: it is another.
    """
    if expected is None or expected == found:
        return
    known = expected if isinstance(expected, Mapping) else {}
    names = {"text_encoder": "parameters", "text_tokenizer": "tokenizer"}
    wrong = [shown for name, shown in names.items() if known.get(name) != found.get(name)]
    raise InputError(
        f"the text encoder {where} has other {' and '.join(wrong) or 'fields'} than the one that "
        f"{model} was trained with; give that one"
    )


class TextConditions:
    """The text tower with its parameters; called with prompts.

    Args:
        network: CLIP, of which the text tower is used.
        params: its parameters, on the host or on a device.
        tokenizer: the one of the tower.
        expected: shapes and dtypes of one example's condition, as the token network says them.
        batch_size: prompts in a call; a smaller rest is filled up to it.
        micro: the five micro-conditions of every example.

    Attributes:
        shapes: {name: shape of one prompt's feature}, without the micro-conditions.
        tokenizer: as given.

    Raises:
        InputError: the tower's features are not what the network takes.
    """

    def __init__(
        self,
        network: Clip,
        params: Any,
        tokenizer: ClipTokenizer,
        expected: Any,
        batch_size: int,
        micro: Sequence[float | int],
    ):
        self._params, self.tokenizer, self._batch_size = params, tokenizer, batch_size
        self._network, self._micro, self._placed = network, np.asarray(micro, np.float32), None
        self._jitted = jax.jit(self.features)
        ids = jax.ShapeDtypeStruct((1, network.context), np.int32)
        made = jax.eval_shape(self.features, params, ids)
        for name, x in made.items():
            if x.shape[1:] != expected[name].shape:
                raise InputError(
                    f"the text encoder gives {name} of {list(x.shape[1:])}, the network takes "
                    f"{list(expected[name].shape)}; give the encoder that it was trained with"
                )
        self.shapes = {name: made[name].shape[1:] for name in ("states", "pooled")}

    @property
    def context(self) -> int:
        """T."""
        return self._network.context

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """What decides the features: the tower's parameters, and the tokenizer."""
        return identity_of(self._params, self.tokenizer)

    def __call__(self, prompts: Sequence[str]) -> Features:
        """Return the conditions of some prompts.

        Args:
            prompts: of any length; what goes beyond the tower's context is cut off, an empty one
                is the negative prompt of Meissonic's pipeline.

        Returns:
            {"states" [N, T, E], "pooled" [N, P], "micro" [N, 5]} float32.
        """
        if self._placed is None:
            # Once: from the host's memory every call would send them to the device again.
            self._placed = jax.device_put(self._params)
        ids, size = self.ids(prompts), self._batch_size
        padded = ids[np.minimum(np.arange(size * math.ceil(len(ids) / size)), len(ids) - 1)]
        parts = [
            jax.device_get(self._jitted(self._placed, padded[start : start + size]))
            for start in range(0, len(padded), size)
        ]
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(ids)], *parts)

    def release(self) -> None:
        """Free the device of the parameters, until the next call."""
        self._placed = None

    def ids(self, prompts: Sequence[str]) -> Int[np.ndarray, "N T"]:
        """Return what the tower reads, int32."""
        return self.tokenizer(prompts)

    def features(self, params: Any, ids: Int[Array, "B T"]) -> dict[str, Array]:
        """Return what a call gives, as a pure function of the tower's parameters and `ids`."""
        return joined.text_features(self._network, params, ids, self._micro)

    def with_micro(self, features: Mapping[str, Float[np.ndarray, "N ..."]]) -> Features:
        """Return text features with the micro-conditions beside them, as the network takes them."""
        num = len(features["pooled"])
        return {**features, "micro": np.tile(self._micro, (num, 1))}

    def on_mesh(self, layout: Layout) -> Callable[[Int[Array, "K B T"]], tuple[Any, Any]]:
        """Return the tower on all devices, its parameters divided by the layout's rules.

        Args:
            layout: the mesh and its rules.

        Returns:
            ids on the mesh (layout.stacked) -> (features of the first batch [B, ...], those of the
            others stacked [K - 1, B, ...] or None), as a call gives them, float32.
        """
        params = {"text": self._params["text"]}
        placed = mesh.put(params, layout.of(params))

        def encode(given: Any, ids: Int[Array, "K B T"]) -> tuple[Any, Any]:
            whole = layout.gather(given)
            first, *others = (self.features(whole, ids[k]) for k in range(len(ids)))
            return first, jax.tree.map(lambda *x: jnp.stack(x), *others) if others else None

        jitted = jax.jit(encode, out_shardings=(layout.batch, layout.stacked))
        return lambda ids: jitted(placed, ids)
