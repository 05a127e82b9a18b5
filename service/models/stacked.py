"""Layers that exist once a modality, their weights stacked on the first axis."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5  # of every LayerNorm


class StackedLinear(nn.Module):
    """One linear map a modality. weight [M, out, in], bias [M, out]."""

    def __init__(self, modalities: int, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter((torch.rand(modalities, outputs, inputs) * 2 - 1) * bound)
        self.bias = nn.Parameter(torch.zeros(modalities, outputs)) if bias else None

    def forward(self, x: Tensor, chains: Tensor) -> Tensor:
        """x [m, t, in] of the modalities `chains` [m] -> [m, t, out]."""
        y = x @ self.weight[chains].transpose(1, 2)
        return y if self.bias is None else y + self.bias[chains][:, None]


class StackedNorm(nn.Module):
    """One LayerNorm a modality. weight, bias [M, d_model]."""

    def __init__(self, modalities: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(modalities, width))
        self.bias = nn.Parameter(torch.zeros(modalities, width))

    def forward(self, x: Tensor, chains: Tensor) -> Tensor:
        """x [m, t, d_model] of the modalities `chains` [m] -> the same shape."""
        return F.layer_norm(x, x.shape[-1:], eps=EPS) * self.weight[chains][:, None] + self.bias[chains][:, None]
