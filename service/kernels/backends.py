"""Which backends this installation has. One is chosen when the process starts; another is never taken in its stead."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Literal

import torch

BACKENDS = ("reference", "cpu", "triton")
LEAST_CAPABILITY = (8, 0)  # of a GPU: bf16 in the tensor cores


@cache
def missing(backend: str) -> str | None:
    """Why a backend of `BACKENDS` cannot be had here, or None where it can."""
    if backend == "cpu":
        try:
            import_module("service.kernels.cpu")
        except ImportError as error:
            return f"its extension does not load ({error}); installing Serpentine anew builds it"
    if backend == "triton":
        if find_spec("triton") is None:
            return "Triton is not installed; the extra `gpu` has it"
        if not torch.cuda.is_available():
            built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            return f"PyTorch {torch.__version__}, {built}, finds no NVIDIA GPU (torch.cuda.is_available() is False)"
        if (capability := torch.cuda.get_device_capability()) < LEAST_CAPABILITY:
            return f"the GPU is of compute capability {capability}, expected at least {LEAST_CAPABILITY}"
    return None


def default_backend() -> Literal["reference", "cpu", "triton"]:
    """The fastest backend that is here: a GPU's, then the compiled one."""
    if missing("triton") is None:
        return "triton"
    return "reference" if missing("cpu") else "cpu"


def check_backend(backend: str) -> None:
    """Raise ValueError where there is no backend of that name, or it cannot be had here."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: one of {', '.join(BACKENDS)}, got {backend!r}")
    if reason := missing(backend):
        raise ValueError(f"backend {backend}: {reason}")
