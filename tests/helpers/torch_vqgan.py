"""Taming's VQGAN and LlamaGen's VQ out of torch.nn parts, with the originals' state-dict keys.

Both take and give pixels in [-1, 1], channels first, as the originals do.
"""

import torch
import torch.nn.functional as F
from torch import nn


def norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, channels, out_channels):
        super().__init__()
        self.norm1, self.norm2 = norm(channels), norm(out_channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity()
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        # One head whose "sequence" is the flattened picture: [B, 1, H W, C].
        q, k, v = (f(self.norm(x)).flatten(2).mT[:, None] for f in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(attended[:, 0].mT.reshape(x.shape))


class Down(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Side(nn.Module):
    """An encoder (`decode` False) or a decoder; what differs in names is at the end of __init__."""

    def __init__(self, decode, taming, ch, ch_mult, num_res_blocks, attn_levels, z_channels):
        super().__init__()
        channels = ch * ch_mult[-1] if decode else ch
        self.decode, self.taming = decode, taming
        self.conv_in = nn.Conv2d(z_channels if decode else 3, channels, 3, padding=1)
        last = len(ch_mult) - 1
        order = range(last, -1, -1) if decode else range(last + 1)
        levels = []  # in the order in which they run
        for level in order:
            out = ch * ch_mult[level]
            part, blocks, attentions = nn.Module(), nn.ModuleList(), nn.ModuleList()
            for _ in range(num_res_blocks + decode):
                blocks.append(Residual(channels, out))
                channels = out
                if level in attn_levels:
                    attentions.append(Attention(channels))
            part.add_module("block" if taming else "res", blocks)
            part.attn = attentions
            if decode and level > 0:
                part.upsample = Up(channels)
            if not decode and level < last:
                part.downsample = Down(channels)
            levels.append(part)
        low = ch * ch_mult[-1]
        middle = [Residual(low, low), Attention(low), Residual(low, low)]
        if taming:
            names = ("block_1", "attn_1", "block_2")
            self.mid = nn.ModuleDict(dict(zip(names, middle, strict=True)))
            # The index is the level, not the order.
            self.add_module(
                "up" if decode else "down", nn.ModuleList(levels[:: -1 if decode else 1])
            )
        else:
            self.mid = nn.ModuleList(middle)
            self.conv_blocks = nn.ModuleList(levels)
        self.norm_out = norm(channels)
        self.conv_out = nn.Conv2d(channels, 3 if decode else z_channels, 3, padding=1)

    def middle(self, x):
        for part in self.mid.values() if self.taming else self.mid:
            x = part(x)
        return x

    def levels(self):
        if not self.taming:
            return self.conv_blocks
        return reversed(self.up) if self.decode else self.down

    def forward(self, x):
        x = self.conv_in(x)
        if self.decode:
            x = self.middle(x)
        for part in self.levels():
            for i, block in enumerate(part.block if self.taming else part.res):
                x = block(x)
                if len(part.attn):
                    x = part.attn[i](x)
            for name in ("downsample", "upsample"):
                if hasattr(part, name):
                    x = getattr(part, name)(x)
        if not self.decode:
            x = self.middle(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class TorchVqgan(nn.Module):
    """By the config of `dimo_jax.tokenizers.vqgan.build`."""

    def __init__(self, config):
        super().__init__()
        self.taming, self.normalize = config["name"] == "vqgan", config["l2_codebook"]
        fields = ("ch", "ch_mult", "num_res_blocks", "attn_levels", "z_channels")
        sizes = {k: config[k] for k in fields}
        self.encoder = Side(False, self.taming, **sizes)
        self.decoder = Side(True, self.taming, **sizes)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(config["n_embed"], config["embed_dim"])
        if not self.taming:
            self.quantize.register_buffer("codebook_used", torch.zeros(65536))
        self.quant_conv = nn.Conv2d(config["z_channels"], config["embed_dim"], 1)
        self.post_quant_conv = nn.Conv2d(config["embed_dim"], config["z_channels"], 1)

    def codes(self):
        weight = self.quantize.embedding.weight
        return F.normalize(weight, dim=-1) if self.normalize else weight

    @torch.no_grad()
    def latents(self, x):
        return self.quant_conv(self.encoder(x))

    @torch.no_grad()
    def encode(self, x):
        z = self.latents(x).permute(0, 2, 3, 1)
        z = F.normalize(z, dim=-1) if self.normalize else z
        # In float64 and from the differences: not by the formula under test.
        distances = torch.cdist(z.double().flatten(0, 2), self.codes().double())
        return distances.argmin(-1).reshape(len(x), -1)

    @torch.no_grad()
    def decode(self, tokens):
        side = round(tokens.shape[1] ** 0.5)
        z = self.codes()[tokens].permute(0, 2, 1).unflatten(2, (side, side))
        return self.decoder(self.post_quant_conv(z))


def randomized(config, seed):
    """A module whose every parameter is random: norms and biases too, or none would be missed."""
    generator = torch.Generator().manual_seed(seed)
    module = TorchVqgan(config).eval()
    for key, value in module.state_dict().items():
        r = torch.empty_like(value).uniform_(-1, 1, generator=generator)
        if key.endswith("bias"):
            value.copy_(0.1 * r)
        elif value.ndim == 1:
            value.copy_(1 + 0.2 * r)
        else:
            value.copy_(r * (3 / value[0].numel()) ** 0.5)
    return module
