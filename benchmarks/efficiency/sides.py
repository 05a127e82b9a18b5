"""Both sides of the efficiency figure, of equal width: Coupled Mamba and fusion by cross-attention, random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from benchmarks.efficiency.fusion import CrossAttentionFusion
from service.kernels.backends import default_backend
from service.models.base import Chunk, allocate
from service.models.coupled_mamba import CoupledMamba
from service.models.coupled_mamba_config import CoupledMambaConfig
from service.models.executables import make_executable

CONFIG = CoupledMambaConfig(
    modalities={"text": 768, "audio": 74, "video": 35}, d_model=128, n_layers=3, d_state=64, coupling="mean"
)  # MOSEI's widths

Side = Callable[[], Callable[[int], Tensor]]  # builds the model -> runs a clip of so many steps, features and all


def coupled_mamba() -> Callable[[int], Tensor]:
    """The coupled recurrence on the default backend, the whole clip as one chunk on a slot."""
    torch.manual_seed(0)
    model = CoupledMamba(CONFIG).eval().requires_grad_(False)
    executable = make_executable(model, default_backend(), threads=1)
    state = allocate(executable.state_tensors(), 1)

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


def cross_attention() -> Callable[[int], Tensor]:
    """The same features, width and number of layers."""
    torch.manual_seed(0)
    model = CrossAttentionFusion(CONFIG.modalities, CONFIG.d_model, CONFIG.n_layers).eval().requires_grad_(False)

    def run(length: int) -> Tensor:
        return model({name: values[None] for name, values in features(length).items()})

    return run


def features(length: int) -> dict[str, Tensor]:
    """Of one clip, [length, size] a modality."""
    generator = torch.Generator().manual_seed(length)
    return {name: torch.randn(length, size, generator=generator) for name, size in CONFIG.modalities.items()}


SIDES: Mapping[str, Side] = MappingProxyType({"Coupled Mamba": coupled_mamba, "cross-attention": cross_attention})
