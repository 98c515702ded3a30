"""Meissonic's transformer: which tensor of the file is which parameter, and its config.json.

Source: viiika/Meissonic; Di[M]O's released text-to-image generator has the same keys and sizes.
"""

from collections.abc import Mapping
from typing import Any

from dimo_jax.common import readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import quoted
from dimo_jax.convert.networks.layouts import Entry, conv, linear, norm, permuted, same

# The feed-forwards' width over the blocks'; in no config.json.
MLP_RATIO = 4
_SIZES = {
    "codebook_size": "codebook_size",
    "vocab_size": "vocabulary",
    "num_layers": "depth",
    "num_single_layers": "single_depth",
    "num_attention_heads": "heads",
    "joint_attention_dim": "text_dim",
    "pooled_projection_dim": "pooled_dim",
    "axes_dims_rope": "rope_dims",
    "downsample": "merge",
}
_FIXED = {"guidance_embeds": False, "patch_size": 1}
DIFFUSERS_VERSION = "0.30.2"  # the authors'
_WRITTEN = {"_class_name": "Transformer2DModel", "_diffusers_version": DIFFUSERS_VERSION}
_WRITTEN |= {"in_channels": 64}

_DOUBLE = {
    "norm1.linear": "modulation",
    "norm1_context.linear": "text_modulation",
    **{f"attn.to_{x}": name for x, name in (("q", "query"), ("k", "key"), ("v", "value"))},
    **{
        f"attn.add_{x}_proj": f"text_{name}"
        for x, name in (("q", "query"), ("k", "key"), ("v", "value"))
    },
    "attn.to_out.0": "out",
    "attn.to_add_out": "text_out",
    "ff.net.0.proj": "mlp_in",
    "ff.net.2": "mlp_out",
    "ff_context.net.0.proj": "text_mlp_in",
    "ff_context.net.2": "text_mlp_out",
}
_SINGLE = {
    "norm.linear": "modulation",
    "attn.to_q": "query",
    "attn.to_k": "key",
    "attn.to_v": "value",
    "proj_mlp": "mlp_in",
    "proj_out": "out",
}
_NORMS = {"attn.norm_q": "query_norm", "attn.norm_k": "key_norm"}
_TEXT_NORMS = {"attn.norm_added_q": "text_query_norm", "attn.norm_added_k": "text_key_norm"}


def entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the table of a Meissonic transformer.

    Args:
        config: of the network; depth, single_depth and merge are looked at.

    Returns:
        One entry for each tensor, 867 for the published one.
    """
    table = [
        *linear("time_text_embed.timestep_embedder.linear_1", "time_in"),
        *linear("time_text_embed.timestep_embedder.linear_2", "time_out"),
        *linear("time_text_embed.text_embedder.linear_1", "pooled_in"),
        *linear("time_text_embed.text_embedder.linear_2", "pooled_out"),
        *linear("context_embedder", "text_in"),
        *norm("encoder_proj_layer_norm", "text_norm", bias=False),
        *linear("cond_embed.linear_1", "condition_in", bias=False),
        *linear("cond_embed.linear_2", "condition_out", bias=False),
        same("embed.embeddings.weight", "token_embedding"),
        *norm("embed.layer_norm", "embed_norm", bias=False),
        _pointwise("embed.conv", "embed_out"),
        *norm("project_to_hidden_norm", "to_hidden_norm", bias=False),
        *linear("project_to_hidden", "to_hidden", bias=False),
        *norm("project_from_hidden_norm", "from_hidden_norm", bias=False),
        *linear("project_from_hidden", "from_hidden", bias=False),
        _pointwise("mlm_layer.conv1", "head_in"),
        *norm("mlm_layer.layer_norm", "head_norm", bias=False),
        _pointwise("mlm_layer.conv2", "head_out"),
    ]
    if config["merge"]:
        table += [
            *norm("down_block.downsample.norm", "merge_norm", bias=False),
            *conv("down_block.downsample.conv", "merge", bias=False),
            *norm("up_block.upsample.norm", "part_norm", bias=False),
            # A transposed convolution's (in, out, row, column), without a flip.
            permuted("up_block.upsample.conv.weight", "part/kernel", (0, 2, 3, 1)),
        ]
    kinds = (
        ("transformer_blocks", "double_block", config["depth"], _DOUBLE, _NORMS | _TEXT_NORMS),
        ("single_transformer_blocks", "single_block", config["single_depth"], _SINGLE, _NORMS),
    )
    for theirs, ours, depth, layers, norms in kinds:
        for i in range(depth):
            for key, name in layers.items():
                table += linear(f"{theirs}.{i}.{key}", f"{ours}_{i}/{name}")
            for key, name in norms.items():
                table += norm(f"{theirs}.{i}.{key}", f"{ours}_{i}/{name}", bias=False)
    return table


def _pointwise(prefix: str, path: str) -> Entry:
    """Return a 1x1 convolution (O, I, 1, 1) without bias as a Dense kernel (I, O)."""
    return Entry(
        f"{prefix}.weight",
        ((*path.split("/"), "kernel"),),
        lambda x: (x[:, :, 0, 0].T,),
        lambda xs: xs[0].T[:, :, None, None],
    )


def image_size(fields: Mapping[str, Any]) -> int:
    """Return the pixels along a side that the transformer of a config.json was trained for."""
    return 1024 if fields.get("downsample") else 512


@readers.well_typed("its config.json")
def config_from(
    fields: Mapping[str, Any], num_tokens: int = 4096, text_length: int = 77
) -> dict[str, Any]:
    """Return the configuration of the network that a config.json describes.

    Args:
        fields: of config.json.
        num_tokens: L, which nothing in the files depends on.
        text_length: ids of a prompt, likewise.

    Returns:
        What models.build takes; the timestep is "zero", as the released generator needs it.

    Raises:
        InputError: a size is missing, or it is another network than Meissonic's.
    """
    missing = [name for name in (*_SIZES, "attention_head_dim", "upsample") if name not in fields]
    if missing:
        raise InputError(f"its config.json says nothing of {', '.join(missing)}")
    wrong = [
        f"{name} {quoted(fields[name])} (expected {value!r})"
        for name, value in {**_FIXED, "upsample": fields["downsample"]}.items()
        if fields.get(name, value) != value
    ]
    if wrong:
        raise InputError(f"this is another transformer than Meissonic's: {', '.join(wrong)}")
    width = fields["num_attention_heads"] * fields["attention_head_dim"]
    return {
        "name": "meissonic",
        "num_tokens": num_tokens,
        **{ours: fields[theirs] for theirs, ours in _SIZES.items()},
        "width": width,
        "mlp_dim": MLP_RATIO * width,
        "text_length": text_length,
        "timestep": "zero",
    }


def scheduler_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scheduler_config.json of the authors' sampler, for the vocabulary of a network."""
    return {
        "_class_name": "Scheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "mask_token_id": config["vocabulary"] - 1,  # the row; of ours the id is another
        "masking_schedule": "cosine",
    }


def config_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json with which the authors' code builds the same network.

    Args:
        config: of the network; num_tokens, text_length and timestep are arguments of their calls.

    Raises:
        InputError: their code cannot build it.
    """
    if config["mlp_dim"] != MLP_RATIO * config["width"]:
        raise InputError(
            f"mlp_dim is {config['mlp_dim']}, but Meissonic's own code has no feed-forward of "
            f"another width than {MLP_RATIO} times {config['width']}"
        )
    return {
        **_WRITTEN,
        **_FIXED,
        **{theirs: config[ours] for theirs, ours in _SIZES.items()},
        "attention_head_dim": config["width"] // config["heads"],
        "upsample": config["merge"],
    }
