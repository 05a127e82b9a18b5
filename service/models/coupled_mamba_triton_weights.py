"""The parameters of a Coupled Mamba as the Triton kernels read them, on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from service.models.coupled_mamba import CoupledMamba

Pair = tuple[Tensor, Tensor]  # weight, bias


@dataclass(frozen=True)
class InputWeights:
    """Features of one modality: constants, then Linear, or Linear, LayerNorm, ReLU, Linear, LayerNorm."""

    mean: Tensor
    scale: Tensor
    linear: Pair
    norm: Pair | None = None
    second: Pair | None = None
    second_norm: Pair | None = None


@dataclass(frozen=True)
class LayerWeights:
    """A layer's, stacked over the modalities; coupling [m, m]."""

    norm: Pair
    in_proj: Tensor
    conv: Pair
    x_proj: Tensor
    dt_proj: Pair
    A: Tensor
    D: Tensor
    out_proj: Tensor
    coupling: Tensor


class Weights:
    """Weights of projections in `dtype`, all others in fp32; the couplings are those of all modalities."""

    def __init__(self, model: CoupledMamba, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        c, head = model.config, model.head
        every = torch.arange(len(c.modalities))
        self.inputs = {name: self._input(cast(Any, model.inputs[name])) for name in c.modalities}
        self.layers = [
            self._layer(cast(Any, layer), model._coupling(index, every)) for index, layer in enumerate(model.layers)
        ]
        self.norm_f = self._pair(model.norm_f, rounded=False)
        self.cross = self._pair(model.cross) if c.dense else None
        self.modalities = self._plain(head.weights.exp() if c.modality_weights == "softmax" else head.weights)
        self.dense, self.out = self._pair(head.dense), self._pair(head.out_proj)

    @property
    def bytes(self) -> int:
        """What they take on the device."""
        held: list[Any] = [self.norm_f, self.cross, self.modalities, self.dense, self.out]
        for part in (*self.inputs.values(), *self.layers):
            held.extend(vars(part).values())
        tensors: list[Tensor] = []
        for entry in held:
            tensors.extend(entry if isinstance(entry, tuple) else [] if entry is None else [entry])
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _plain(self, parameter: Tensor) -> Tensor:
        return parameter.detach().to(self._device, torch.float32).contiguous()

    def _weight(self, parameter: Tensor) -> Tensor:
        return parameter.detach().to(self._device, self._dtype).contiguous()

    def _pair(self, module: Any, *, rounded: bool = True) -> Pair:
        return (self._weight if rounded else self._plain)(module.weight), self._plain(module.bias)

    def _input(self, layer: Any) -> InputWeights:
        mean, scale = self._plain(layer.mean), self._plain(layer.scale)
        if not isinstance(layer.project, nn.Sequential):
            return InputWeights(mean, scale, self._pair(layer.project))
        linear, norm, _, second, second_norm = layer.project
        norms = (self._pair(module, rounded=False) for module in (norm, second_norm))
        return InputWeights(mean, scale, self._pair(linear), next(norms), self._pair(second), next(norms))

    def _layer(self, layer: Any, coupling: Tensor) -> LayerWeights:
        return LayerWeights(
            norm=self._pair(layer.norm, rounded=False),
            in_proj=self._weight(layer.in_proj.weight),
            conv=(self._plain(layer.conv_weight), self._plain(layer.conv_bias)),
            x_proj=self._weight(layer.x_proj.weight),
            dt_proj=self._pair(layer.dt_proj),
            A=self._plain(-torch.exp(layer.A_log.detach().float())),
            D=self._plain(layer.D),
            out_proj=self._weight(layer.out_proj.weight),
            coupling=self._plain(coupling),
        )
