"""Which architecture a checkpoint folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.models import checkpoint, generative_checkpoint
from service.models.files import read_config

ARCHITECTURES = (checkpoint.ARCHITECTURE, generative_checkpoint.ARCHITECTURE)


def architecture_of(folder: Path) -> str:
    """The architecture that the folder's config.json states. Raises ValueError where it is none that is known."""
    return read_config(folder, _architecture)


def _architecture(values: Mapping[str, Any]) -> str:
    if values.get("architecture") not in ARCHITECTURES:
        raise ValueError(f"architecture: one of {', '.join(ARCHITECTURES)}, got {values.get('architecture')!r}")
    return str(values["architecture"])
