"""Timing on a GPU, and what the device could do at best."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton

COPIED_BYTES = 4 << 30
EXPONENTIALS_A_CLOCK = 16  # of a multiprocessor, by NVIDIA's table of arithmetic throughput for 8.0 and 9.0


@dataclass(frozen=True)
class Figure:
    """One row of the results; milliseconds on the device. floor_fraction: of the floor, 1 is its speed."""

    work: str
    ours_ms: float
    floor_ms: float
    bound: str
    peer_name: str | None = None
    peer_ms: float | None = None

    def line(self) -> dict[str, Any]:
        """As a line of JSON."""
        ratio = None if self.peer_ms is None else self.peer_ms / self.ours_ms
        return asdict(self) | {"floor_fraction": self.floor_ms / self.ours_ms, "ratio": ratio}


def median_ms(run: Callable[[], object], rounds: int = 50, warm: int = 5) -> float:
    """The middle time of `run` on the device, by its events. What it reads should not fit into the cache."""
    for _ in range(warm):
        run()
    torch.cuda.synchronize()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for begin, end in events:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events)


def copy_bandwidth() -> float:
    """Bytes a millisecond, read and written, of a large copy within the device's memory."""
    source = torch.randint(0, 256, (COPIED_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / median_ms(lambda: target.copy_(source), rounds=20)


def exponential_rate() -> float:
    """Exponentials a millisecond: the units there are at the clock that the device says is its highest."""
    properties = triton.runtime.driver.active.utils.get_device_properties(torch.cuda.current_device())
    return EXPONENTIALS_A_CLOCK * float(properties["multiprocessor_count"] * properties["sm_clock_rate"])  # kHz
