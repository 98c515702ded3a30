"""MaskGit's transformer of classes in PyTorch, for diffusers; needs torch and diffusers alone.

One table embeds codes, [MASK], classes and the null class; the class stands last; the output matrix
is the table itself, with a bias for each position. Axes: B batch, L image tokens, D width, V ids.

Source: valeoai/Maskgit-pytorch v1.0, whose names the tensors have.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


def _with_norm(width: int, name: str, module: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"norm": nn.LayerNorm(width), "fn": nn.ModuleDict({name: module})})


def _mlp(width: int, hidden: int) -> nn.Sequential:
    # The places of the original's dropout, for its numbers.
    layers = (nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width))
    return nn.Sequential(*layers)


class MaskGitTransformer(ModelMixin, ConfigMixin):
    """Tokens and classes -> logits of the codes.

    Args:
        num_tokens: L.
        codebook_size: codes; [MASK] is the next id.
        num_classes: classes.
        width: D.
        depth: blocks.
        heads: attention heads.
        mlp_dim: hidden width of the feed-forwards.
        predict_mask_id: whether [MASK] has a logit.
    """

    # As it was loaded; pipeline.py writes it beside what it saves.
    _source = Path(__file__).read_bytes()

    @register_to_config
    def __init__(
        self,
        num_tokens: int = 256,
        codebook_size: int = 1024,
        num_classes: int = 1000,
        width: int = 768,
        depth: int = 24,
        heads: int = 16,
        mlp_dim: int = 3072,
        predict_mask_id: bool = True,
    ):
        super().__init__()
        rows = codebook_size + 1 + num_classes + 1
        self.pos_emb = nn.Parameter(torch.zeros(1, num_tokens + 1, width))
        self.bias = nn.Parameter(torch.zeros(num_tokens + 1, rows))
        self.tok_emb = nn.Embedding(rows, width)
        self.first_layer = nn.Sequential(
            nn.LayerNorm(width, eps=1e-12),
            nn.Identity(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, eps=1e-12),
            nn.Identity(),
            nn.Linear(width, width),
        )
        layers = [
            nn.ModuleList(
                [
                    _with_norm(width, "mha", nn.MultiheadAttention(width, heads, batch_first=True)),
                    _with_norm(width, "net", _mlp(width, mlp_dim)),
                ]
            )
            for _ in range(depth)
        ]
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.last_layer = nn.Sequential(
            nn.LayerNorm(width, eps=1e-12),
            nn.Identity(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, eps=1e-12),
        )

    def forward(
        self,
        hidden_states: Tensor,
        class_labels: Tensor,
        perturb: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return logits [B, L, V].

        Args:
            hidden_states: ids [B, L]; codebook_size is [MASK].
            class_labels: [B]; num_classes is the null class.
            perturb: maps the embeddings [B, L, D] of the tokens, e.g. adds noise.
        """
        config = self.config
        image = self.tok_emb(hidden_states)
        if perturb is not None:
            image = perturb(image)
        label = self.tok_emb(config.codebook_size + 1 + class_labels)[:, None]
        x = self.first_layer(torch.cat([image, label], dim=1) + self.pos_emb)
        for attention, mlp in self.transformer["layers"]:
            y = attention["norm"](x)
            x = x + attention["fn"]["mha"](y, y, y, need_weights=False)[0]
            x = x + mlp["fn"]["net"](mlp["norm"](x))
        x = self.last_layer(x[:, : config.num_tokens])
        predicted = config.codebook_size + int(config.predict_mask_id)
        bias = self.bias[: config.num_tokens, :predicted]
        return x @ self.tok_emb.weight[:predicted].T + bias
