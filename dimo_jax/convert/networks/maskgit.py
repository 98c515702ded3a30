"""MaskGit-PyTorch v1 checkpoints: which tensor of `MaskTransformer` is which leaf of ours.

Source: valeoai/Maskgit-pytorch v1.0; the same keys are in Di[M]O's released generator. The student
of sony/di4c has four more.
"""

from collections.abc import Mapping
from typing import Any

from dimo_jax.common.errors import InputError
from dimo_jax.convert.networks.layouts import (
    Entry,
    attention,
    count_layers,
    linear,
    norm,
    reshaped,
    same,
    shape_of,
)

_LAYERS = "transformer.layers."
MIXTURE = "latent_projection.0.weight"


def entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the table of a MaskGit transformer.

    Args:
        config: of the network; num_tokens, width, depth, heads and mixture_dim are looked at.

    Returns:
        17 + 12 depth entries, in the order of the original's state dict; then those of a mixture.
    """
    length, width = config["num_tokens"] + 1, config["width"]
    table = [
        reshaped("pos_emb", "position_embedding", (length, width), (1, length, width)),
        same("bias", "output_bias"),
        same("tok_emb.weight", "token_embedding"),
        *norm("first_layer.0", "first_norm_in"),
        *linear("first_layer.2", "first_in"),
        *norm("first_layer.4", "first_norm_out"),
        *linear("first_layer.6", "first_out"),
    ]
    for layer in range(config["depth"]):
        prefix, path = f"{_LAYERS}{layer}", f"block_{layer}"
        table += [
            *norm(f"{prefix}.0.norm", f"{path}/attention_norm"),
            *attention(f"{prefix}.0.fn.mha", f"{path}/attention", config["heads"]),
            *norm(f"{prefix}.1.norm", f"{path}/mlp_norm"),
            *linear(f"{prefix}.1.fn.net.0", f"{path}/mlp_in"),
            *linear(f"{prefix}.1.fn.net.3", f"{path}/mlp_out"),
        ]
    table += [
        *norm("last_layer.0", "last_norm_in"),
        *linear("last_layer.2", "last"),
        *norm("last_layer.4", "last_norm_out"),
    ]
    if config.get("mixture_dim"):
        table += linear("latent_projection.0", "mixture_in")
        table += linear("latent_projection.2", "mixture_out")
    return table


def config_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of `diffusers_files/modeling_maskgit.py`."""
    unused = ("name", "dropout", "mixture_dim")
    sizes = {k: v for k, v in config.items() if k not in unused}
    return {"_class_name": "MaskGitTransformer", **sizes}


def config_from(
    state: Mapping[str, Any], heads: int = 16, num_classes: int = 1000
) -> dict[str, Any]:
    """Return the configuration of the network that a state dict belongs to.

    Args:
        state: {key: array}; only shapes are looked at, and only of what gives a size.
        heads: in no shape. The published checkpoints have 16; 8, the original class's default,
            fits them as well and gives other images.
        num_classes: no shape tells codes from classes.

    Returns:
        What models.build takes.

    Raises:
        InputError: a tensor that gives a size is missing or has the wrong number of axes, or the
            vocabulary is too small for the classes.
    """
    vocabulary, width = shape_of(state, "tok_emb.weight", 2)
    codebook_size = vocabulary - num_classes - 2
    if codebook_size < 1:
        raise InputError(
            f"tok_emb.weight has {vocabulary} rows, expected more than {num_classes + 2}: those of "
            f"{num_classes} classes, [MASK] and the null class; give the number of classes"
        )
    mixture = {"mixture_dim": shape_of(state, MIXTURE, 2)[0]} if MIXTURE in state else {}
    return {
        "name": "maskgit",
        "num_tokens": shape_of(state, "pos_emb", 3)[1] - 1,
        "codebook_size": codebook_size,
        "num_classes": num_classes,
        "width": width,
        "depth": count_layers(state, _LAYERS),
        "heads": heads,
        "mlp_dim": shape_of(state, f"{_LAYERS}0.1.fn.net.0.weight", 2)[0],
        "dropout": 0.1,
        "predict_mask_id": True,
        **mixture,
    }
