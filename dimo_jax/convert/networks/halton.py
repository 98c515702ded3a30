"""Halton-MaskGIT checkpoints: which tensor of its `Transformer` is which leaf of ours.

Source: valeoai/Halton-MaskGIT, main branch.
"""

from collections.abc import Mapping
from typing import Any

from dimo_jax.common.errors import InputError
from dimo_jax.convert.networks.layouts import (
    Entry,
    conv,
    count_layers,
    linear,
    norm,
    same,
    shape_of,
)
from dimo_jax.models.halton import SIZES

_LAYERS = "transformer.layers."


def entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the table of a Halton-MaskGIT transformer.

    Args:
        config: of the network; depth and proj are looked at.

    Returns:
        10 + 11 depth entries, two more where proj is 2. "head.weight" repeats "tok_emb.weight".
    """
    table = [
        same("cls_emb.weight", "class_embedding"),
        same("tok_emb.weight", "token_embedding"),
        same("pos_emb.weight", "position_embedding"),
    ]
    if config["proj"] == 2:
        table += [
            *conv("in_proj", "in_proj", bias=False),
            *conv("out_proj", "out_proj", bias=False),
        ]
    for layer in range(config["depth"]):
        prefix, path = f"{_LAYERS}{layer}", f"block_{layer}"
        table += linear(f"{prefix}.mlp.1", f"{path}/modulation")
        table += norm(f"{prefix}.ln1", f"{path}/attention_norm", bias=False)
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
            table += linear(f"{prefix}.attn.w{theirs}", f"{path}/attention/{ours}", bias=False)
        table += norm(f"{prefix}.ln2", f"{path}/mlp_norm", bias=False)
        for number, ours in ((1, "gate"), (2, "out"), (3, "in")):
            table += linear(f"{prefix}.ff.w{number}", f"{path}/mlp_{ours}", bias=False)
    return [
        *table,
        *norm("last_norm.norm_final", "last_norm"),
        *linear("last_norm.mlp.1", "last_modulation"),
        Entry("head.weight", same_as="tok_emb.weight"),
        same("head.bias", "output_bias"),
        same("reg_tokens.weight", "register_embedding"),
    ]


def config_from(state: Mapping[str, Any], heads: int | None = None) -> dict[str, Any]:
    """Return the configuration of the network that a state dict belongs to.

    Args:
        state: {key: array}; only shapes are looked at, and only of what gives a size.
        heads: in no shape; None takes those of the released size of this width.

    Returns:
        What models.build takes.

    Raises:
        InputError: a tensor that gives a size is missing or has the wrong number of axes, or no
            released size has this width and `heads` is None.
    """
    rows, width = shape_of(state, "tok_emb.weight", 2)
    if heads is None:
        known = {size["width"]: size["heads"] for size in SIZES.values()}
        if width not in known:
            raise InputError(
                f"tok_emb.weight has width {width}, expected one of {', '.join(map(str, known))}: "
                "no shape tells the number of heads, so give it"
            )
        heads = known[width]
    return {
        "name": "halton",
        "num_tokens": shape_of(state, "pos_emb.weight", 2)[0],
        "codebook_size": rows - 1,
        "num_classes": shape_of(state, "cls_emb.weight", 2)[0] - 1,
        "width": width,
        "depth": count_layers(state, _LAYERS),
        "heads": heads,
        "mlp_dim": shape_of(state, f"{_LAYERS}0.ff.w1.weight", 2)[0],
        "dropout": 0.0,
        "registers": shape_of(state, "reg_tokens.weight", 2)[0],
        "proj": 2 if "in_proj.weight" in state or "out_proj.weight" in state else 1,
    }
