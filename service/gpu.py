"""Memory and load of the GPUs, read when a scrape asks for them.

PyTorch's allocator says what this process took, NVML what the device has and how busy it is, whoever uses it. Without
a GPU the families are there and have no samples; without NVML (the extra `gpu`) the driver is asked through PyTorch,
and the load is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, Protocol

import torch
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

Held = Callable[[], Mapping[int, Mapping[str, int]]]


class Devices(Protocol):
    """What is asked of `torch.cuda`."""

    def is_available(self) -> bool:
        """Whether there is a GPU that can be used."""

    def is_initialized(self) -> bool:
        """Whether this process has begun to use one; a scrape must not be what begins it."""

    def device_count(self) -> int:
        """How many there are."""

    def get_device_properties(self, device: int) -> Any:
        """An object with the device's `uuid`."""

    def memory_allocated(self, device: int) -> int:
        """Bytes of live tensors."""

    def memory_reserved(self, device: int) -> int:
        """Bytes that the allocator holds."""

    def mem_get_info(self, device: int) -> tuple[int, int]:
        """Bytes that are free, and in all."""


class GpuCollector(Collector):
    """`gpu_memory_bytes` and `gpu_utilization_ratio`.

    `held` is set by whoever places models: {device: {kind: bytes}}, kind weights, state_pool or graphs.
    """

    def __init__(self, devices: Devices | None = None, nvml: Any = None) -> None:
        """devices: torch.cuda; nvml: the module pynvml, looked for where there is a GPU."""
        self.devices: Devices = devices or torch.cuda
        self.held: Held = dict
        self._present = self.devices.is_available()
        self._nvml: Any = (nvml or _nvml()) if self._present else None
        if self._nvml is not None:
            try:
                self._nvml.nvmlInit()
            except self._nvml.NVMLError as error:
                logger.warning("NVML does not start; the load of the GPU is not known", extra={"error": str(error)})
                self._nvml = None

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Both families, with a sample for what can be read now."""
        memory = GaugeMetricFamily("serpentine_gpu_memory_bytes", "Memory of a GPU.", labels=("device", "kind"))
        load = GaugeMetricFamily("serpentine_gpu_utilization_ratio", "Busy share of a GPU.", labels=("device",))
        if self._present and self.devices.is_initialized():
            held = self.held()
            for device in range(self.devices.device_count()):
                kinds = {
                    "allocated": self.devices.memory_allocated(device),
                    "reserved": self.devices.memory_reserved(device),
                    **held.get(device, {}),
                }
                handle = self._handle(device)
                used, total = self._memory(device, handle)
                for kind, value in {**kinds, "used": used, "total": total}.items():
                    memory.add_metric((str(device), kind), value)
                if (busy := self._busy(handle)) is not None:
                    load.add_metric((str(device),), busy)
        yield memory
        yield load

    def _handle(self, device: int) -> Any:
        """NVML's name for a device: by its UUID, since NVML counts those too that are hidden from this process."""
        if self._nvml is None:
            return None
        uuid = str(self.devices.get_device_properties(device).uuid)
        try:
            return self._nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        except self._nvml.NVMLError:
            return None

    def _memory(self, device: int, handle: Any) -> tuple[int, int]:
        if handle is not None:
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                return int(memory.used), int(memory.total)
            except self._nvml.NVMLError:  # a part of a GPU (MIG) may not tell
                pass
        free, total = self.devices.mem_get_info(device)
        return total - free, total

    def _busy(self, handle: Any) -> float | None:
        if handle is None:
            return None
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
        except self._nvml.NVMLError:
            return None


def _nvml() -> Any:
    try:
        return import_module("pynvml")
    except ImportError:
        logger.warning("the load of the GPU is not known; install the extra `gpu`")
        return None
