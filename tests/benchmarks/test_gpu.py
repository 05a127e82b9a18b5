from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: the GPU's works cannot be imported")

from benchmarks.gpu.measure import Figure
from benchmarks.gpu.works import slot_bytes, touched_bytes
from service.models.base import allocate
from service.models.mixture_of_mamba_triton import MixtureOfMambaTriton
from tests.generative import generative_model


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would measure")
def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--save", "never"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert "the GPU benchmarks measure nothing here: PyTorch" in result.stderr


def test_the_floor_counts_the_weights_of_the_modalities_that_are_hit() -> None:
    model = generative_model(split=("in_proj",), tied=False)
    program = MixtureOfMambaTriton(model, device=torch.device("cpu"))
    assert touched_bytes(program, 3) == program.weight_bytes
    in_proj = sum(layer.in_proj[0].numel() * 4 for layer in model.blocks.layers)
    assert touched_bytes(program, 3) - touched_bytes(program, 1) == 2 * in_proj


def test_the_floor_counts_a_slots_state_once() -> None:
    tensors = generative_model().state_tensors()
    expected = sum(4 * torch.Size(tensor.shape).numel() for tensor in tensors.values())
    assert slot_bytes(allocate(tensors, 7)) == expected


def test_a_figure_states_its_fraction_of_the_floor_and_the_ratio_to_the_peer() -> None:
    line = Figure("w", ours_ms=2.0, floor_ms=1.5, bound="memory", peer_name="p", peer_ms=5.0).line()
    assert (line["floor_fraction"], line["ratio"]) == (0.75, 2.5)
    assert Figure("w", 2.0, 1.5, "memory").line()["ratio"] is None
