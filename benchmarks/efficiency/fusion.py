"""The rival of the efficiency figure: modalities fused by cross-attention, pair by pair, as a multimodal transformer.

Of each modality and each other one there is a stack of layers whose queries come from the first and whose keys and
values from the second; a modality's stacks are joined, pooled over time and read by a head. Attention is PyTorch's
fused kernel, which never lays the L x L weights out: the form of cross-attention that is hardest to beat on memory.
What such models add, self-attention over the joined stacks, is left out in its favour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 4
HIDDEN = 4  # of the feed-forward part, times the width


class CrossLayer(nn.Module):
    """Pre-norm cross-attention and feed-forward part, each with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.source_norm, self.hidden_norm = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.expand, self.contract = nn.Linear(width, HIDDEN * width), nn.Linear(HIDDEN * width, width)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """x [b, l, d] attends to source [b, l', d] -> [b, l, d]."""
        q, (k, v) = self.query(self.norm(x)), self.key_value(self.source_norm(source)).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))  # [b, h, l, d / h]
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.contract(F.relu(self.expand(self.hidden_norm(x))))


class CrossAttentionFusion(nn.Module):
    """Features of M modalities -> one value."""

    def __init__(self, modalities: Mapping[str, int], width: int, layers: int) -> None:
        super().__init__()
        names = list(modalities)
        self.inputs = nn.ModuleDict({name: nn.Linear(size, width) for name, size in modalities.items()})
        self.pairs = [(target, source) for target in names for source in names if source != target]
        self.stacks = nn.ModuleList(nn.ModuleList(CrossLayer(width) for _ in range(layers)) for _ in self.pairs)
        joined = len(self.pairs) * width
        self.head = nn.Sequential(nn.LayerNorm(joined), nn.Linear(joined, 64), nn.ReLU(), nn.Linear(64, 1))

    @torch.inference_mode()
    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """{modality: [b, l, size]} -> [b, 1]."""
        e = {name: project(features[name]) for name, project in self.inputs.items()}
        places = {name: _places(row) for name, row in e.items()}
        e = {name: row + places[name] for name, row in e.items()}
        pooled = []
        for (target, source), stack in zip(self.pairs, self.stacks, strict=True):
            x = e[target]
            for layer in stack:
                x = layer(x, e[source])
            pooled.append(x.amax(1))
        return self.head(torch.cat(pooled, -1))


def _places(row: Tensor) -> Tensor:
    """Sines and cosines of the positions in [b, l, d], [l, d]."""
    rates = torch.exp(torch.arange(0, row.shape[2], 2, device=row.device) * (-math.log(10_000.0) / row.shape[2]))
    angles = torch.arange(row.shape[1], device=row.device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
