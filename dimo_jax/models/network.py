"""What every token network looks like from outside."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Network:
    """A token predictor p(x_0 | x_t, condition) as two pure functions.

    Attributes:
        config: plain values that rebuild it through models.build.
        num_tokens: L, image tokens in a sequence.
        codebook_size: codes 0 .. codebook_size - 1 are image tokens.
        num_classes: labels 0 .. num_classes - 1; the label num_classes means "no condition".
        init: key -> params.
        apply: (params, tokens [B, L] int32, condition, *, perturb=None, dropout_key=None) ->
            logits [B, L, V] float32. `perturb` maps the image tokens' embeddings [B, L, D] before
            positions are added; dropout is off without a `dropout_key`.
    """

    config: dict[str, Any]
    num_tokens: int
    codebook_size: int
    num_classes: int
    init: Callable[..., Any]
    apply: Callable[..., Any]

    @property
    def mask_id(self) -> int:
        """The token that stands for "masked": the first after the codes."""
        return self.codebook_size
