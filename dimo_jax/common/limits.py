"""Bounds on every number in the config of a network or tokenizer, checked before it is built.

A config comes with weights from elsewhere. Its sizes decide how long a network takes to build and
what is allocated; each bound is several times that of any published model.
"""

from collections.abc import Mapping
from typing import Any

from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import quoted, shown

_LAYERS = ("depth", "single_depth", "num_res_blocks", "registers")
_MOST = {
    **dict.fromkeys(_LAYERS, 512),
    **dict.fromkeys(("heads", "ch_mult", "attn_levels", "proj", "divisor", "window"), 1024),
    **dict.fromkeys(
        ("patch_size", "ch", "channels", "num_levels", "rope_dims", "num_queries"), 1 << 13
    ),
    **dict.fromkeys(("image_size", "image_shape"), 1 << 13),
    **dict.fromkeys(("width", "mlp_dim", "z_channels", "embed_dim", "projection"), 1 << 17),
    **dict.fromkeys(("text_dim", "pooled_dim", "num_features", "num_logits"), 1 << 17),
    "mixture_dim": 1 << 17,
    "num_steps": 1 << 16,
    **dict.fromkeys(("num_tokens", "context", "text_length"), 1 << 18),
    **dict.fromkeys(("codebook_size", "n_embed", "vocabulary", "num_classes"), 1 << 24),
}
_FRACTIONS = ("dropout",)
_SWITCHES = ("predict_mask_id", "merge", "l2_codebook")
_MOST_LISTED = 64  # factors of levels, sides of an image


def check_sizes(config: Mapping[str, Any], num_leaves: int | None = None, where: str = "") -> None:
    """Refuse a config with a number that no model has; other fields are left to the builder.

    Args:
        config: plain values, as read from a file; towers may be dicts of their own.
        num_leaves: arrays that the parameters have, if known: no network has more layers.
        where: what stands before a field's name in messages.

    Raises:
        InputError: naming the field, its value and what is possible.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_sizes(value, num_leaves, f"{where}{shown(name)}.")
        elif name in _MOST:
            _check_size(f"{where}{name}", value, _most(name, num_leaves))
        elif name in _FRACTIONS:
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise InputError(f"{where}{name} is {quoted(value)}, expected a number in [0, 1)")
        elif name in _SWITCHES and type(value) is not bool:
            raise InputError(f"{where}{name} is {quoted(value)}, expected true or false")


def _most(name: str, num_leaves: int | None) -> int:
    if name in _LAYERS and num_leaves is not None:
        return min(_MOST[name], num_leaves)
    return _MOST[name]


def _check_size(name: str, value: Any, most: int) -> None:
    values = value if isinstance(value, list | tuple) else [value]
    if len(values) > _MOST_LISTED or any(type(x) is not int for x in values):
        raise InputError(f"{name} is {quoted(value)}, expected a whole number, or a few")
    if any(not 0 <= x <= most for x in values):
        raise InputError(f"{name} is {quoted(value)}, expected 0 to {most:,}")
