"""Meissonic's transformer out of diffusers' own parts, with the original's state-dict keys.

The reference of the ported network: Flux's blocks, and what aMUSEd has before and after its own.
Axes as in the port: B batch, L image tokens, D width.
"""

from tests.helpers import torch_peers  # noqa: F401

# isort: split

import math

import torch
from diffusers.models.embeddings import (
    CombinedTimestepTextProjEmbeddings,
    TimestepEmbedding,
    get_timestep_embedding,
)
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers import transformer_flux as flux
from diffusers.models.unets.uvit_2d import ConvMlmLayer, UVit2DConvEmbed, UVitBlock
from torch import nn


def _resampling(width, down, up):
    """aMUSEd's block without its residual and attention layers."""
    return UVitBlock(width, 0, width, 0.0, True, 1e-6, False, 1, 0.0, down, up)


class TorchMeissonic(nn.Module):
    """Takes the configuration of models.meissonic.build."""

    def __init__(self, config):
        super().__init__()
        width, heads = config["width"], config["heads"]
        assert config["mlp_dim"] == 4 * width
        self.side, self.merge = math.isqrt(config["num_tokens"]), config["merge"]
        self.pos_embed = flux.FluxPosEmbed(theta=10000, axes_dim=config["rope_dims"])
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(width, width)
        self.context_embedder = nn.Linear(config["text_dim"], width)
        self.encoder_proj_layer_norm = RMSNorm(width, 1e-6)
        pooled = config["pooled_dim"] + 5 * 256
        self.cond_embed = TimestepEmbedding(pooled, width, sample_proj_bias=False)
        self.embed = UVit2DConvEmbed(width, width, config["vocabulary"], True, 1e-6, False)
        self.down_block = _resampling(width, self.merge, False)
        self.project_to_hidden_norm = RMSNorm(width, 1e-6)
        self.project_to_hidden = nn.Linear(width, width, bias=False)
        sizes = (width, heads, width // heads)
        self.transformer_blocks = nn.ModuleList(
            flux.FluxTransformerBlock(*sizes) for _ in range(config["depth"])
        )
        self.single_transformer_blocks = nn.ModuleList(
            flux.FluxSingleTransformerBlock(*sizes) for _ in range(config["single_depth"])
        )
        self.project_from_hidden_norm = RMSNorm(width, 1e-6)
        self.project_from_hidden = nn.Linear(width, width, bias=False)
        self.up_block = _resampling(width, False, self.merge)
        self.mlm_layer = ConvMlmLayer(width, width, False, True, 1e-6, config["codebook_size"])

    def forward(self, ids, states, pooled, micro, timestep, perturb=None):
        """Logits [B, L, codes]; `ids` are rows of the table."""
        batch = len(ids)
        waves = get_timestep_embedding(
            micro.flatten(), 256, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        vector = self.cond_embed(torch.cat([pooled, waves.reshape(batch, -1)], dim=1))
        vector = self.time_text_embed(1000 * timestep, vector)
        text = self.encoder_proj_layer_norm(self.context_embedder(states))

        x = self.embed(ids.reshape(batch, self.side, self.side))
        if perturb is not None:
            x = perturb(x.flatten(2).mT).mT.reshape(x.shape)
        x = self.down_block(x, None, None, None)
        side = x.shape[-1]
        x = self.project_to_hidden(self.project_to_hidden_norm(x.flatten(2).mT))
        places = torch.zeros(side, side, 3)
        places[..., 1] += torch.arange(side)[:, None]
        places[..., 2] += torch.arange(side)
        places = torch.cat([torch.zeros(text.shape[1], 3), places.reshape(-1, 3)])
        angles = self.pos_embed(places)
        for block in self.transformer_blocks:
            text, x = block(x, text, vector, angles)
        for block in self.single_transformer_blocks:
            text, x = block(x, text, vector, angles)
        x = self.project_from_hidden(self.project_from_hidden_norm(x))
        x = self.up_block(x.mT.reshape(batch, -1, side, side), None, None, None)
        return self.mlm_layer(x).flatten(2).mT
