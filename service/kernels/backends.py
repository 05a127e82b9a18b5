"""Which backends this installation has. One is chosen when the process starts; another is never taken in its stead."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Literal

BACKENDS = ("reference", "cpu")


@cache
def missing(backend: str) -> str | None:
    """Why a backend of `BACKENDS` cannot be had here, or None where it can."""
    if backend == "cpu":
        try:
            import_module("service.kernels.cpu")
        except ImportError as error:
            return f"its extension does not load ({error}); installing Serpentine anew builds it"
    return None


def default_backend() -> Literal["reference", "cpu"]:
    """The fastest backend that is here."""
    return "reference" if missing("cpu") else "cpu"


def check_backend(backend: str) -> None:
    """Raise ValueError where there is no backend of that name, or it cannot be had here."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: one of {', '.join(BACKENDS)}, got {backend!r}")
    if reason := missing(backend):
        raise ValueError(f"backend {backend}: {reason}")
