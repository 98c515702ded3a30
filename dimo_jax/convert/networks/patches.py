"""Codebooks of patches as diffusers_files/modeling_patches.py has them; of gray levels too."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dimo_jax.convert.networks.layouts import Entry, same


def entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the table, of one tensor.

    Args:
        config: of `tokenizers.patches.build` or `tokenizers.gray_levels.build`.
    """
    if config["name"] == "patches":
        return [same("codebook", "codebook")]
    top = config["num_levels"] - 1
    levels = np.arange(top + 1, dtype=np.float32)[:, None, None] / np.float32(top)
    return [Entry("codebook", (), lambda _: (), lambda _: levels)]  # no parameter: a constant


def config_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json, of a config as for `entries`."""
    if config["name"] == "patches":
        sizes = {name: config[name] for name in ("codebook_size", "patch_size", "channels")}
    else:
        sizes = {"codebook_size": config["num_levels"], "patch_size": 1, "channels": 1}
    return {"_class_name": "PatchCodebook", **sizes}
