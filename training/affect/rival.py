"""The rival: a plain GRU of equal size that fuses the modalities by concatenation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ConcatenationGru(nn.Module):
    """Same inputs, same outputs and same pooling as `CoupledMamba`, so that only the recurrence differs.

    At each step the normalised values of all modalities (zeros where absent) and the bits of presence are
    concatenated, projected and read by GRU layers; running maximum and mean go through the same kind of head.
    """

    def __init__(
        self,
        modalities: Mapping[str, int],
        outputs: Mapping[str, int],
        *,
        d_hidden: int,
        n_layers: int = 2,
        d_head: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.modalities = dict(modalities)
        self.outputs = dict(outputs)
        for name, dim in modalities.items():
            self.register_buffer(f"mean_{name}", torch.zeros(dim))
            self.register_buffer(f"scale_{name}", torch.ones(dim))
        self.project = nn.Linear(sum(modalities.values()) + len(modalities), d_hidden)
        self.gru = nn.GRU(d_hidden, d_hidden, n_layers, batch_first=True, dropout=dropout)
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * d_hidden, d_head), nn.ReLU(), nn.Linear(d_head, sum(outputs.values()))
        )

    def set_normalisation(self, mean: Mapping[str, Tensor], scale: Mapping[str, Tensor]) -> None:
        """Constants of the training data: x -> (x - mean) * scale. {modality: [dim]}"""
        for name in self.modalities:
            getattr(self, f"mean_{name}").copy_(mean[name])
            getattr(self, f"scale_{name}").copy_(scale[name])

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        """inputs {modality: [t, dim]}, present [m, t] bool, offsets [b + 1] -> {output: [b, size]}, size 1 squeezed"""
        parts = []
        for bits, name in zip(present, self.modalities, strict=True):
            value = (inputs[name] - getattr(self, f"mean_{name}")) * getattr(self, f"scale_{name}")
            parts.append(value * bits.unsqueeze(-1))
        steps = self.project(torch.cat([*parts, present.T.to(parts[0].dtype)], -1))  # [t, h]
        lengths = offsets.diff()
        longest = int(lengths.max())
        place = torch.arange(longest) < lengths.unsqueeze(-1)  # [b, n]
        padded = steps.new_zeros(*place.shape, steps.shape[-1])
        padded[place] = steps
        hidden, _ = self.gru(padded)  # what follows a sequence's end changes nothing before it
        keep = place.unsqueeze(-1)
        most = hidden.masked_fill(~keep, -math.inf).amax(1)
        mean = (hidden * keep).sum(1) / lengths.unsqueeze(-1)
        values = self.head(torch.cat([most, mean], -1)).split(list(self.outputs.values()), -1)
        return {
            name: value.squeeze(1) if self.outputs[name] == 1 else value
            for name, value in zip(self.outputs, values, strict=True)
        }
