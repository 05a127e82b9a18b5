"""Floors count what a model cannot avoid."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import floors, peers
from benchmarks.floors import Floor, Needs, Rates, coupled_mamba_needs, measure_rates, mixture_of_mamba_needs
from benchmarks.pinning import ALL
from benchmarks.works.predict_engine import COUPLED, RELEASED
from service.models.coupled_mamba_config import CoupledMambaConfig
from service.models.mixture_of_mamba import MixtureOfMamba
from service.models.mixture_of_mamba_config import MixtureOfMambaConfig
from service.models.vocabulary import Vocabulary

RATES = Rates(read_bytes=10.0, exponentials=20.0, flops=40.0, bf16_flops=80.0)


@pytest.mark.parametrize(
    ("needs", "seconds", "bound"),
    [
        (Needs(60, 10), 6.0, "memory"),
        (Needs(10, 70), 3.5, "arithmetic"),
        (Needs(10, 10, flops=80), 2.5, "arithmetic"),
        (Needs(10, 10, flops=80, bf16_flops=160, updates=20), 7.5, "arithmetic"),
    ],
)
def test_memory_or_all_arithmetic_binds(needs: Needs, seconds: float, bound: str) -> None:
    floor = needs.floor(RATES)
    assert (floor.seconds, floor.bound) == (seconds, bound)


@pytest.mark.parametrize(("config", "model"), [(RELEASED, peers.Released), (COUPLED, peers.Coupled)])
def test_flops_are_those_of_the_maps(config: CoupledMambaConfig, model: type[torch.nn.Module]) -> None:
    rival = model(config, lambda x, *_: x)  # without its scan
    inputs = {name: torch.zeros(2, 10, width) for name, width in config.modalities.items()}
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        rival(inputs)
    assert coupled_mamba_needs(config, 2, 10, 0).flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_flops_of_tokens_are_those_of_the_maps_and_the_head() -> None:
    vocabulary = Vocabulary({"text": 50})
    config = MixtureOfMambaConfig(d_model=96, n_layers=2, d_state=1, split=())  # its scan hardly counts
    model = MixtureOfMamba(config, vocabulary)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(20, dtype=torch.int64), torch.tensor([0, 10, 20]))
    needs = mixture_of_mamba_needs(config, 50, 2, 10, 10, 0)
    assert needs.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_weights_beyond_the_cache_come_with_every_token() -> None:
    config = MixtureOfMambaConfig(d_model=96, n_layers=2, split=())
    kept, fetched = (mixture_of_mamba_needs(config, 50, 8, 16 + 31, 32, n).bytes for n in (10**6, 10**8))
    assert (kept, fetched) == (4 * 10**6, 32 * 4 * 10**8)


def test_states_beyond_the_cache_come_and_go_with_every_token() -> None:
    config = MixtureOfMambaConfig(d_model=768, n_layers=24, split=())
    few, many = (mixture_of_mamba_needs(config, 50, n, 1, 1, 10**8, torch.bfloat16).bytes for n in (8, 32))
    states = 4 * 32 * 24 * 1536 * (16 + 3)
    assert (few, many) == (2 * 10**8, 2 * 10**8 + 2 * states)


def test_products_of_bf16_count_apart() -> None:
    config = MixtureOfMambaConfig(d_model=96, n_layers=2, split=())
    full, halved = (mixture_of_mamba_needs(config, 50, 2, 10, 1, 0, t) for t in (torch.float32, torch.bfloat16))
    assert full.bf16_flops == 0 < halved.bf16_flops
    assert full.flops == halved.flops + halved.bf16_flops


def test_cores_share_the_memory_and_not_the_arithmetic() -> None:
    together = replace(RATES, read_bytes_all=12.0).of(cores=2)
    assert Needs(60, 10).floor(together) == Floor(5.0, "memory")
    assert Needs(1, 10, flops=80, bf16_flops=160).floor(together) == Floor(2.25, "arithmetic")
    assert RATES.of(cores=2).read_bytes == RATES.read_bytes  # none was measured


def test_rates_are_measured() -> None:
    rates = measure_rates(budget_s=0.05)
    assert min(rates.read_bytes, rates.exponentials, rates.flops) > 1e6
    assert rates.bf16_flops >= rates.flops


@pytest.mark.parametrize("cores", [(0,), (0, 1)])
def test_all_cores_read_at_once_where_there_are_several(
    cores: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading: list[tuple[int, int]] = []

    def dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
        reading.append((threading.get_ident(), a.nbytes))

    available = sorted(ALL)
    monkeypatch.setattr(floors, "ALL", [available[core % len(available)] for core in cores])
    monkeypatch.setattr(floors, "READ_BYTES", 2**16)
    monkeypatch.setattr(np, "dot", dot)
    rates = floors.measure_rates(budget_s=0.01)
    apart = {thread for thread, _ in reading} - {threading.get_ident()}
    if len(cores) < 2:
        assert (rates.read_bytes_all, apart) == (None, set())
    else:
        assert rates.read_bytes_all is not None
        assert len(apart) == 2
        assert {size for thread, size in reading if thread in apart} == {2**15}
