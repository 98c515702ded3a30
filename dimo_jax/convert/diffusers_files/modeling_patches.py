"""A codebook of square patches in PyTorch, for diffusers; needs torch and diffusers alone."""

from pathlib import Path
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class Decoded(NamedTuple):
    """Pixels [B, C, H, W] in [0, 1]."""

    sample: Tensor


class PatchCodebook(ModelMixin, ConfigMixin):
    """Each token is one of `codebook_size` patches of `patch_size` pixels along a side."""

    # As it was loaded; pipeline.py writes it beside what it saves.
    _source = Path(__file__).read_bytes()

    @register_to_config
    def __init__(self, codebook_size: int = 128, patch_size: int = 2, channels: int = 1):
        super().__init__()
        self.codebook = nn.Parameter(torch.zeros(codebook_size, patch_size, patch_size * channels))

    def decode(self, h: Tensor, force_not_quantize: bool = True, shape: object = None) -> Decoded:
        """Lay out the patches of tokens [B, rows, columns]; called as diffusers' VQModel is."""
        size = self.config.patch_size
        patches = self.codebook[h].unflatten(-1, (size, -1))  # [B, rows, columns, y, x, channels]
        pixels = patches.permute(0, 5, 1, 3, 2, 4)
        return Decoded(pixels.flatten(4, 5).flatten(2, 3))
