"""What the runner holds: a model made ready for one backend."""

from __future__ import annotations

from typing import overload

import torch

from service.kernels.backends import check_backend
from service.models.base import Chunk, RecurrentModel, TokenChunk
from service.models.coupled_mamba import CoupledMamba
from service.models.ensemble import Ensemble, EnsembleProgram
from service.models.mixture_of_mamba import MixtureOfMamba


@overload
def make_executable(
    model: CoupledMamba | Ensemble, backend: str, dtype: torch.dtype = ..., threads: int | None = ...
) -> RecurrentModel[Chunk]: ...
@overload
def make_executable(
    model: MixtureOfMamba, backend: str, dtype: torch.dtype = ..., threads: int | None = ...
) -> RecurrentModel[TokenChunk]: ...
def make_executable(
    model: CoupledMamba | Ensemble | MixtureOfMamba,
    backend: str,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
) -> RecurrentModel[Chunk] | RecurrentModel[TokenChunk]:
    """The executable of `model` for a backend: the module itself (`reference`), or a compiled program; of an ensemble,
    a program over those of its members.

    dtype    of the weights: float32 or bfloat16. The reference computes in float32 and takes no other
    threads  most threads of a step of `cpu`; None: what the process may use. PyTorch's are set elsewhere
    Raises ValueError where the backend is unknown, is not here or does not have the dtype.
    """
    if isinstance(model, Ensemble):
        members = [make_executable(member, backend, dtype, threads) for member in model.each()]
        return EnsembleProgram(members, model.config.modalities, model.hears())
    check_backend(backend)
    if dtype not in (torch.float32, torch.bfloat16) or (backend == "reference" and dtype != torch.float32):
        raise ValueError(f"backend {backend} does not compute with weights of {dtype}")
    if backend == "reference":
        return model
    # Imported where the backend is known to be here.
    if backend == "triton":
        from service.models.coupled_mamba_triton import CoupledMambaTriton
        from service.models.mixture_of_mamba_triton import MixtureOfMambaTriton

        if isinstance(model, CoupledMamba):
            return CoupledMambaTriton(model, dtype=dtype)
        return MixtureOfMambaTriton(model, dtype=dtype)
    from service.models.coupled_mamba_cpu import CoupledMambaProgram
    from service.models.mixture_of_mamba_cpu import MixtureOfMambaProgram

    if isinstance(model, CoupledMamba):
        return CoupledMambaProgram(model, dtype=dtype, threads=threads)
    return MixtureOfMambaProgram(model, dtype=dtype, threads=threads)
