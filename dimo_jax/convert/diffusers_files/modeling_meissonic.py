"""Meissonic's transformer in PyTorch, for diffusers; needs torch and diffusers alone.

Text and image attend to each other in every block: in the first blocks each has parameters of its
own, in the later ones both have the same. 2 by 2 tokens are one inside the blocks. Axes: B batch,
L image tokens, T text tokens, N both inside the blocks, H heads, d = D / H, D width, V codes.

Source: Bai et al., arXiv 2410.08261; the tensors have the names of viiika/Meissonic.

Over 300 lines, as diffusers loads one file of a folder.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

_EPSILON = 1e-6
_WAVES = 256  # numbers of each value
Rotary = tuple[Tensor, Tensor]  # cosines and sines


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32 up to the weight."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + _EPSILON)
        return y.to(self.weight.dtype) * self.weight


class Perceptron(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, features: int, width: int, bias: bool = True):
        super().__init__()
        self.linear_1 = nn.Linear(features, width, bias=bias)
        self.linear_2 = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, features] to [B, D]."""
        return self.linear_2(F.silu(self.linear_1(x)))


class TimeAndText(nn.Module):
    """What modulates every block: time and pooled text."""

    def __init__(self, width: int):
        super().__init__()
        self.timestep_embedder = Perceptron(_WAVES, width)
        self.text_embedder = Perceptron(width, width)

    def forward(self, time: Tensor, pooled: Tensor) -> Tensor:
        """Add both, [B, D]."""
        return self.timestep_embedder(time) + self.text_embedder(pooled)


class Modulation(nn.Module):
    """Shifts, scales and gates out of the vector of time and text."""

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.parts, self.linear = parts, nn.Linear(width, parts * width)

    def forward(self, vector: Tensor) -> Sequence[Tensor]:
        """Return `parts` tensors [B, 1, D]."""
        return self.linear(F.silu(vector))[:, None].chunk(self.parts, dim=-1)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=_EPSILON) * (1 + scale) + shift


class _Gelu(nn.Module):
    """Its layer has the name `proj` in the file."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """D -> 4 D -> D."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(_Gelu(width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers."""
        return self.net(x)


class Attention(nn.Module):
    """Joint attention; `add_` are the layers of the text, where it has its own."""

    def __init__(self, width: int, heads: int, with_text: bool):
        super().__init__()
        self.heads, self.with_text = heads, with_text
        for name in ("to_q", "to_k", "to_v"):
            self.add_module(name, nn.Linear(width, width))
        self.norm_q, self.norm_k = RMSNorm(width // heads), RMSNorm(width // heads)
        if with_text:
            for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
                self.add_module(name, nn.Linear(width, width))
            self.to_out = nn.ModuleList([nn.Linear(width, width)])
            self.norm_added_q, self.norm_added_k = (RMSNorm(width // heads) for _ in range(2))

    def forward(self, image: Tensor, text: Tensor | None, rotary: Rotary) -> Tensor:
        """Return [B, N, D]; of both streams text comes first. Without `text`, `image` is both."""
        layers = (self.to_q, self.to_k, self.to_v)
        query, key, value = (layer(image).unflatten(-1, (self.heads, -1)) for layer in layers)
        query, key = self.norm_q(query), self.norm_k(key)
        if text is not None:
            layers = (self.add_q_proj, self.add_k_proj, self.add_v_proj)
            added = [layer(text).unflatten(-1, (self.heads, -1)) for layer in layers]
            query = torch.cat([self.norm_added_q(added[0]), query], dim=1)
            key = torch.cat([self.norm_added_k(added[1]), key], dim=1)
            value = torch.cat([added[2], value], dim=1)
        query, key = _rotated(query, rotary), _rotated(key, rotary)
        parts = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


def _rotated(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn neighbouring numbers of [B, N, H, d] as points, in float32."""
    cos, sin = (part[:, None] for part in rotary)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def _rotary(text_length: int, side: int, dims: Sequence[int], device: torch.device) -> Rotary:
    """Cosines and sines [N, d / 2]: text at (0, 0, 0), image tokens at (0, row, column)."""
    # In float64 on the CPU, which not every device has.
    places = torch.zeros(text_length + side**2, 3, dtype=torch.float64)
    index = torch.arange(side**2)
    places[text_length:, 1], places[text_length:, 2] = index // side, index % side
    axes = []
    for i, dim in enumerate(dims):
        frequencies = 10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        axes.append(places[:, i : i + 1] * frequencies)
    angles = torch.cat(axes, dim=1)
    return angles.cos().float().to(device), angles.sin().float().to(device)


class DoubleBlock(nn.Module):
    """Joint attention, then a feed-forward for each stream; all shifted, scaled and gated."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm1_context = Modulation(width, 6), Modulation(width, 6)
        self.attn = Attention(width, heads, with_text=True)
        self.ff, self.ff_context = FeedForward(width), FeedForward(width)

    def forward(
        self, image: Tensor, text: Tensor, vector: Tensor, rotary: Rotary
    ) -> tuple[Tensor, Tensor]:
        """Apply one layer to both streams."""
        of_image, of_text = self.norm1(vector), self.norm1_context(vector)
        y = self.attn(_modulated(image, *of_image[:2]), _modulated(text, *of_text[:2]), rotary)
        length = text.shape[1]
        image = image + of_image[2] * self.attn.to_out[0](y[:, length:])
        image = image + of_image[5] * self.ff(_modulated(image, *of_image[3:5]))
        text = text + of_text[2] * self.attn.to_add_out(y[:, :length])
        return image, text + of_text[5] * self.ff_context(_modulated(text, *of_text[3:5]))


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side on the joint sequence, through one output layer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm = Modulation(width, 3)
        self.attn = Attention(width, heads, with_text=False)
        self.proj_mlp, self.proj_out = nn.Linear(width, 4 * width), nn.Linear(5 * width, width)

    def forward(self, x: Tensor, vector: Tensor, rotary: Rotary) -> Tensor:
        """Apply one layer."""
        shift, scale, gate = self.norm(vector)
        y = _modulated(x, shift, scale)
        hidden = F.gelu(self.proj_mlp(y), approximate="tanh")
        return x + gate * self.proj_out(torch.cat([self.attn(y, None, rotary), hidden], dim=-1))


class Embedding(nn.Module):
    """Table, norm and a linear layer, which the file has as a 1x1 convolution."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.embeddings, self.layer_norm = nn.Embedding(rows, width), RMSNorm(width)
        self.conv = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows [B, L] to [B, L, D]."""
        return F.linear(self.layer_norm(self.embeddings(rows)), self.conv.weight[:, :, 0, 0])


class Head(nn.Module):
    """[B, L, D] -> logits, by two 1x1 convolutions of the file."""

    def __init__(self, width: int, codes: int):
        super().__init__()
        self.conv1, self.layer_norm = nn.Conv2d(width, width, 1, bias=False), RMSNorm(width)
        self.conv2 = nn.Conv2d(width, codes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, L, V]."""
        x = self.layer_norm(F.linear(x, self.conv1.weight[:, :, 0, 0]))
        return F.linear(x, self.conv2.weight[:, :, 0, 0])


class Resampling(nn.Module):
    """Norm and convolution: 2 by 2 tokens become one, or one becomes four."""

    def __init__(self, width: int, kind: type[nn.Module]):
        super().__init__()
        self.norm, self.conv = RMSNorm(width), kind(width, width, 2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, L, D] to [B, L / 4, D], or back."""
        side = math.isqrt(x.shape[1])
        grid = self.norm(x).mT.unflatten(-1, (side, side))
        return self.conv(grid.contiguous()).flatten(2).mT


class Transformer2DModel(ModelMixin, ConfigMixin):
    """Tokens, text features, micro-conditions and time -> logits of the codes.

    Args:
        codebook_size: V.
        vocab_size: rows of the table; the last is [MASK].
        num_layers: blocks with parameters for each stream.
        num_single_layers: blocks with the same for both.
        attention_head_dim: d.
        num_attention_heads: H.
        joint_attention_dim: width of the text states.
        pooled_projection_dim: width of the pooled text, without the five micro-conditions.
        axes_dims_rope: how much of a head turns with each of three axes.
        downsample: whether 2 by 2 tokens are one inside the blocks.
        upsample: as `downsample`.
        patch_size: 1; with in_channels and guidance_embeds a field of the published files.
        in_channels: likewise, without a meaning.
        guidance_embeds: False.
    """

    # As it was loaded; pipeline.py writes it beside what it saves.
    _source = Path(__file__).read_bytes()

    @register_to_config
    def __init__(
        self,
        codebook_size: int = 8192,
        vocab_size: int = 8256,
        num_layers: int = 14,
        num_single_layers: int = 28,
        attention_head_dim: int = 128,
        num_attention_heads: int = 8,
        joint_attention_dim: int = 1024,
        pooled_projection_dim: int = 1024,
        axes_dims_rope: Sequence[int] = (16, 56, 56),
        downsample: bool = True,
        upsample: bool = True,
        patch_size: int = 1,
        in_channels: int = 64,
        guidance_embeds: bool = False,
    ):
        super().__init__()
        if downsample != upsample or patch_size != 1 or guidance_embeds:
            raise ValueError("downsample and upsample must be equal, patch_size 1, no guidance")
        heads, width = num_attention_heads, num_attention_heads * attention_head_dim
        self.time_text_embed = TimeAndText(width)
        self.context_embedder = nn.Linear(joint_attention_dim, width)
        self.encoder_proj_layer_norm = RMSNorm(width)
        self.cond_embed = Perceptron(pooled_projection_dim + 5 * _WAVES, width, bias=False)
        self.embed = Embedding(vocab_size, width)
        self.project_to_hidden_norm = RMSNorm(width)
        self.project_to_hidden = nn.Linear(width, width, bias=False)
        self.transformer_blocks = nn.ModuleList(
            DoubleBlock(width, heads) for _ in range(num_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(width, heads) for _ in range(num_single_layers)
        )
        self.project_from_hidden_norm = RMSNorm(width)
        self.project_from_hidden = nn.Linear(width, width, bias=False)
        self.mlm_layer = Head(width, codebook_size)
        if downsample:
            self.down_block = nn.ModuleDict({"downsample": Resampling(width, nn.Conv2d)})
            self.up_block = nn.ModuleDict({"upsample": Resampling(width, nn.ConvTranspose2d)})

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        micro_conds: Tensor,
        timestep: Tensor,
        perturb: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return logits [B, L, V].

        Args:
            hidden_states: ids [B, L]; whatever is no code is [MASK].
            encoder_hidden_states: [B, T, joint_attention_dim], of the text encoder's last layer but
                one.
            pooled_projections: [B, pooled_projection_dim].
            micro_conds: [B, 5].
            timestep: [B], the share of masked tokens, or 0.
            perturb: maps the embeddings [B, L, D] of the tokens, e.g. adds noise.
        """
        config, dtype = self.config, self.context_embedder.weight.dtype
        is_code = hidden_states < config.codebook_size
        rows = torch.where(is_code, hidden_states, config.vocab_size - 1)
        waves = _sinusoids(micro_conds).to(dtype)
        condition = torch.cat([pooled_projections.to(dtype), waves], dim=-1)
        time = _sinusoids(1000 * timestep[:, None].float()).to(dtype)
        vector = self.time_text_embed(time, self.cond_embed(condition))
        text = self.context_embedder(encoder_hidden_states.to(dtype))
        text = self.encoder_proj_layer_norm(text)

        x = self.embed(rows)
        if perturb is not None:
            x = perturb(x)
        if config.downsample:
            x = self.down_block["downsample"](x)
        x = self.project_to_hidden(self.project_to_hidden_norm(x))
        side = math.isqrt(x.shape[1])
        rotary = _rotary(text.shape[1], side, config.axes_dims_rope, x.device)
        for block in self.transformer_blocks:
            x, text = block(x, text, vector, rotary)
        length, x = text.shape[1], torch.cat([text, x], dim=1)
        for block in self.single_transformer_blocks:
            x = block(x, vector, rotary)
        x = self.project_from_hidden(self.project_from_hidden_norm(x[:, length:]))
        if config.downsample:
            x = self.up_block["upsample"](x)
        return self.mlm_layer(x)


def _sinusoids(values: Tensor) -> Tensor:
    """Cosines, then sines of each value at 128 frequencies: [B, K] to [B, 256 K], float32."""
    half = _WAVES // 2
    exponents = -math.log(10_000) * torch.arange(half, dtype=torch.float32) / half
    angles = values.float()[..., None] * exponents.exp().to(values.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1)
