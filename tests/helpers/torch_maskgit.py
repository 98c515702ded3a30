"""MaskGit-PyTorch's transformer out of torch.nn parts, with the original's state-dict keys.

The reference of the ported network: logits and, through autograd, gradients. Axes as in the port:
B batch, N image tokens, D width, K codes.
"""

import torch
from torch import nn


def _attention(width, heads, dropout):
    mha = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
    return nn.ModuleDict({"norm": nn.LayerNorm(width), "fn": nn.ModuleDict({"mha": mha})})


def _feed_forward(width, mlp_dim, dropout):
    net = nn.Sequential(
        nn.Linear(width, mlp_dim),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(mlp_dim, width),
        nn.Dropout(dropout),
    )
    return nn.ModuleDict({"norm": nn.LayerNorm(width), "fn": nn.ModuleDict({"net": net})})


class TorchMaskGit(nn.Module):
    """`MaskTransformer`; takes the configuration of models.maskgit.build."""

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
        dropout=0.1,
        predict_mask_id=True,
        name="maskgit",
    ):
        super().__init__()
        assert predict_mask_id and name == "maskgit"
        self.num_tokens, self.codebook_size = num_tokens, codebook_size
        vocabulary = codebook_size + 1 + num_classes + 1
        self.pos_emb = nn.Parameter(torch.zeros(1, num_tokens + 1, width))
        self.bias = nn.Parameter(torch.zeros(num_tokens + 1, vocabulary))
        self.tok_emb = nn.Embedding(vocabulary, width)
        self.first_layer = nn.Sequential(
            nn.LayerNorm(width, eps=1e-12),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, eps=1e-12),
            nn.Dropout(dropout),
            nn.Linear(width, width),
        )
        layers = [
            nn.ModuleList(
                [_attention(width, heads, dropout), _feed_forward(width, mlp_dim, dropout)]
            )
            for _ in range(depth)
        ]
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.last_layer = nn.Sequential(
            nn.LayerNorm(width, eps=1e-12),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, eps=1e-12),
        )

    def forward(self, tokens, labels, perturb=None):
        """Logits [B, N, K + 1]; labels are 0 .. num_classes, the last the null class.

        `perturb`, if given, maps the image tokens' embeddings [B, N, D] before the positions.
        """
        image = self.tok_emb(tokens)
        image = image if perturb is None else perturb(image)
        label = self.tok_emb(self.codebook_size + 1 + labels)
        x = self.first_layer(torch.cat([image, label[:, None]], dim=1) + self.pos_emb)
        for attention, feed_forward in self.transformer["layers"]:
            y = attention["norm"](x)
            x = x + attention["fn"]["mha"](y, y, y, need_weights=True)[0]
            x = x + feed_forward["fn"]["net"](feed_forward["norm"](x))
        logits = self.last_layer(x) @ self.tok_emb.weight.T + self.bias
        return logits[:, : self.num_tokens, : self.codebook_size + 1]
