"""Halton-MaskGIT's transformer out of torch.nn parts, with the original's state-dict keys.

The reference of the ported network. Axes as in the port: B batch, L image tokens, D width.
"""

import math

import torch
from torch import nn
from torch.nn import functional


def _linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


def _rms(x):
    return functional.rms_norm(x, x.shape[-1:], eps=1e-5)


class _WeightAndBias(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))


class _Layer(nn.Module):
    def __init__(self, width, heads, mlp_dim):
        super().__init__()
        self.heads = heads
        inner = heads * (width // heads)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.ln1 = nn.RMSNorm(width, eps=1e-5)
        self.attn = nn.ModuleDict(
            {name: _linear(width, inner) for name in ("wq", "wk", "wv")}
            | {"wo": _linear(inner, width)}
        )
        self.ln2 = nn.RMSNorm(width, eps=1e-5)
        self.ff = nn.ModuleDict(
            {
                "w1": _linear(width, mlp_dim),
                "w2": _linear(mlp_dim, width),
                "w3": _linear(width, mlp_dim),
            }
        )

    def attention(self, x):
        q, k, v = _rms(self.attn["wq"](x)), _rms(self.attn["wk"](x)), self.attn["wv"](x)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.attn["wo"](y.transpose(1, 2).flatten(2))

    def forward(self, x, label):
        gamma1, beta1, alpha1, gamma2, beta2, alpha2 = self.mlp(label)[:, None].chunk(6, dim=-1)
        x = x + alpha1 * self.attention(self.ln1(x) * (1 + beta1) + gamma1)
        y = self.ln2(x) * (1 + beta2) + gamma2
        y = functional.silu(self.ff["w1"](y)) * self.ff["w3"](y)
        return x + alpha2 * self.ff["w2"](y)


class TorchHalton(nn.Module):
    """`Transformer`; takes the configuration of models.halton.build, without dropout."""

    def __init__(
        self,
        *,
        num_tokens,
        codebook_size,
        num_classes,
        width,
        depth,
        heads,
        mlp_dim,
        registers=1,
        proj=1,
        dropout=0.0,
        name="halton",
    ):
        super().__init__()
        assert dropout == 0 and name == "halton"
        self.side, self.proj = math.isqrt(num_tokens), proj
        self.cls_emb = nn.Embedding(num_classes + 1, width)
        self.tok_emb = nn.Embedding(codebook_size + 1, width)
        self.pos_emb = nn.Embedding(num_tokens, width)
        if proj > 1:
            self.in_proj = nn.Conv2d(width, width, kernel_size=2, stride=2, bias=False)
            self.out_proj = nn.Conv2d(width, 4 * width, kernel_size=1, bias=False)
        layers = nn.ModuleList([_Layer(width, heads, mlp_dim) for _ in range(depth)])
        self.transformer = nn.ModuleDict({"layers": layers})
        self.last_norm = nn.ModuleDict(
            {
                "norm_final": _WeightAndBias(width),
                "mlp": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
            }
        )
        self.head = nn.Linear(width, codebook_size + 1)
        self.head.weight = self.tok_emb.weight
        self.reg_tokens = nn.Embedding(registers, width)

    def forward(self, tokens, labels, perturb=None):
        """Logits [B, L, codes + 1]; labels are 0 .. num_classes, the last the null class."""
        image = self.tok_emb(tokens)
        image = image if perturb is None else perturb(image)
        x = image + self.pos_emb.weight
        if self.proj > 1:
            grid = x.transpose(1, 2).unflatten(2, (self.side, self.side))
            x = self.in_proj(grid).flatten(2).transpose(1, 2)
        length, label = x.shape[1], self.cls_emb(labels)
        x = torch.cat([x, self.reg_tokens.weight.expand(len(x), -1, -1)], dim=1)
        for layer in self.transformer["layers"]:
            x = layer(x, label)
        x = x[:, :length]
        if self.proj > 1:
            half = self.side // 2
            grid = self.out_proj(x.transpose(1, 2).unflatten(2, (half, half)))
            x = functional.pixel_shuffle(grid, 2).flatten(2).transpose(1, 2)
        shift, scale = self.last_norm["mlp"](label)[:, None].chunk(2, dim=-1)
        norm = self.last_norm["norm_final"]
        return self.head((_rms(x) * norm.weight + norm.bias) * (1 + scale) + shift)
