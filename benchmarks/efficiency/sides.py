"""Both sides of the efficiency figure, of equal width: Coupled Mamba and fusion by cross-attention, random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from benchmarks.efficiency.fusion import CrossAttentionFusion
from service.models.base import Chunk, allocate, device_of
from service.models.coupled_mamba import CoupledMamba
from service.models.coupled_mamba_config import CoupledMambaConfig
from service.models.executables import make_executable

CONFIG = CoupledMambaConfig(
    modalities={"text": 768, "audio": 74, "video": 35}, d_model=128, n_layers=3, d_state=64, coupling="mean"
)  # MOSEI's widths

Side = Callable[[str], Callable[[int], Tensor]]  # the model on a backend's device -> runs a clip of so many steps


def coupled_mamba(backend: str) -> Callable[[int], Tensor]:
    """The coupled recurrence, compiled, the whole clip as one chunk on a slot."""
    torch.manual_seed(0)
    model = CoupledMamba(CONFIG).eval().requires_grad_(False)
    executable = make_executable(model, backend, threads=1)
    state = allocate(executable.state_tensors(), 1, device_of(executable))

    def run(length: int) -> Tensor:
        chunk = Chunk(
            inputs=features(length),
            present=torch.ones(len(CONFIG.modalities), length, dtype=torch.bool),
            offsets=torch.tensor([0, length]),
            slots=torch.tensor([0]),
            fresh=torch.tensor([True]),
            reads=torch.tensor([length - 1]),
        )
        with torch.inference_mode():
            return executable.run(chunk, state)

    return run


def cross_attention(backend: str) -> Callable[[int], Tensor]:
    """The same features, width and number of layers, on the device of that backend."""
    torch.manual_seed(0)
    device = "cuda" if backend == "triton" else "cpu"
    model = CrossAttentionFusion(CONFIG.modalities, CONFIG.d_model, CONFIG.n_layers)
    model.to(device).eval().requires_grad_(False)

    def run(length: int) -> Tensor:
        return model({name: values[None].to(device) for name, values in features(length).items()}).cpu()

    return run


def features(length: int) -> dict[str, Tensor]:
    """Of one clip, [length, size] a modality."""
    generator = torch.Generator().manual_seed(length)
    return {name: torch.randn(length, size, generator=generator) for name, size in CONFIG.modalities.items()}


SIDES: Mapping[str, Side] = MappingProxyType({"Coupled Mamba": coupled_mamba, "cross-attention": cross_attention})
