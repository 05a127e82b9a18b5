"""What is built ahead of time for a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.models.coupled_mamba import CoupledMamba
from tests.checkpoints import PARTS, build_checkpoint

pytest.importorskip("triton", reason="Triton is not installed: there is nothing to build with")

from service.models import triton_variants


def test_every_layout_of_an_ensembles_members_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[str, ...]] = []

    def run(model: CoupledMamba, dtype: torch.dtype) -> None:
        built.append(tuple(model.config.modalities))

    monkeypatch.setattr(triton_variants, "run_coupled", run)
    folder = build_checkpoint(tmp_path / "parts", hears=(*PARTS, PARTS[1]))
    for _, variant in triton_variants.of_folders([folder, build_checkpoint(tmp_path / "one")]):
        variant()
    assert built == [*PARTS, PARTS[0]]
