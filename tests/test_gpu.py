"""The GPU families: from PyTorch's allocator and NVML, in so far as each of them is there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from service.gpu import GpuCollector
from service.served import held_by

UUIDS = ["a-1", "b-2"]


class Devices:
    """torch.cuda with two devices."""

    def __init__(self, *, available: bool = True, initialized: bool = True) -> None:
        self.is_available = lambda: available
        self.is_initialized = lambda: initialized
        self.device_count = lambda: len(UUIDS)
        self.memory_allocated = lambda device: 10 + device
        self.memory_reserved = lambda device: 20 + device
        self.mem_get_info = lambda device: (60, 100)

    def get_device_properties(self, device: int) -> Any:
        return SimpleNamespace(uuid=UUIDS[device])


class Nvml:
    """pynvml. Its devices are more than this process sees, and in another order. `refuses`: functions that fail."""

    class NVMLError(Exception):
        pass

    def __init__(self, *refuses: str) -> None:
        self.refuses = refuses

    def nvmlInit(self) -> None:
        self._check("init")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        self._check("handle")
        return ["GPU-hidden", "GPU-b-2", "GPU-a-1"].index(uuid)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        self._check("memory")
        return SimpleNamespace(used=1000 + handle, total=2000)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        self._check("load")
        return SimpleNamespace(gpu=25 * handle)

    def _check(self, what: str) -> None:
        if what in self.refuses:
            raise self.NVMLError(what)


def collect(collector: GpuCollector) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
    memory, load = collector.collect()
    assert (memory.name, load.name) == ("serpentine_gpu_memory_bytes", "serpentine_gpu_utilization_ratio")
    return (
        {(s.labels["device"], s.labels["kind"]): s.value for s in memory.samples},
        {s.labels["device"]: s.value for s in load.samples},
    )


def test_everything_by_device_and_kind() -> None:
    collector = GpuCollector(Devices(), Nvml())
    collector.held = lambda: {1: {"weights": 3, "state_pool": 4, "graphs": 5}}
    memory, load = collect(collector)
    first = {("0", "allocated"): 10, ("0", "reserved"): 20, ("0", "used"): 1002, ("0", "total"): 2000}
    second = {("1", "allocated"): 11, ("1", "reserved"): 21, ("1", "used"): 1001, ("1", "total"): 2000}
    assert memory == first | second | {("1", "weights"): 3, ("1", "state_pool"): 4, ("1", "graphs"): 5}
    assert load == {"0": 0.5, "1": 0.25}


def test_without_a_gpu_nothing_is_asked_and_nothing_is_told() -> None:
    assert collect(GpuCollector(Devices(available=False), Nvml("init"))) == ({}, {})


def test_a_scrape_is_not_what_starts_cuda() -> None:
    assert collect(GpuCollector(Devices(initialized=False), Nvml())) == ({}, {})


@pytest.mark.parametrize("refused", ["init", "handle"])
def test_without_nvml_the_driver_is_asked_through_pytorch(refused: str) -> None:
    memory, load = collect(GpuCollector(Devices(), Nvml(refused)))
    assert (memory["0", "used"], memory["0", "total"], load) == (40, 100, {})


def test_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("service.gpu.import_module", absent)
    memory, load = collect(GpuCollector(Devices()))
    assert (memory["1", "used"], load) == (40, {})


@pytest.mark.parametrize(("refused", "used", "loads"), [("memory", 40, 2), ("load", 1002, 0)])
def test_what_a_device_does_not_tell_is_left_out(refused: str, used: int, loads: int) -> None:
    memory, load = collect(GpuCollector(Devices(), Nvml(refused)))
    assert (memory["0", "used"], len(load)) == (used, loads)


def test_what_models_keep_is_added_up_by_device() -> None:
    def model(index: int | None, weights: int, **executable: int) -> Any:
        runner = SimpleNamespace(
            device=SimpleNamespace(index=index), state_bytes=10, model=SimpleNamespace(**executable)
        )
        return SimpleNamespace(lane=SimpleNamespace(runner=runner), weight_bytes=weights)

    held = held_by([model(None, 1), model(0, 2, graph_bytes=5), model(1, 4)])
    assert held == {0: {"weights": 3, "state_pool": 20, "graphs": 5}, 1: {"weights": 4, "state_pool": 10}}
