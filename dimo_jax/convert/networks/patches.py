"""The codebook of patches as diffusers_files/modeling_patches.py has it."""

from collections.abc import Mapping
from typing import Any

from dimo_jax.convert.networks.layouts import Entry, same


def entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the table: one tensor, whatever the config says."""
    del config
    return [same("codebook", "codebook")]


def config_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of the codebook of a `tokenizers.patches.build`."""
    sizes = {name: config[name] for name in ("codebook_size", "patch_size", "channels")}
    return {"_class_name": "PatchCodebook", **sizes}
