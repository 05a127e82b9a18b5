"""`python -m benchmarks.efficiency.memory BACKEND SIDE LENGTH …`: the memory that a side takes, as a line of JSON.

{"loaded": bytes of the model and its workspace, "clips": [the most on top of that while a clip of each length runs]}.
A process of its own, so that nothing else is counted: resident sets, whose largest Linux forgets on request; for the
backend triton what PyTorch's allocator gives out of the device's memory.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch

from benchmarks.efficiency.sides import SIDES

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_PEAK = "5"


def measure(backend: str, side: str, lengths: list[int]) -> dict[str, object]:
    """Of each length in turn, which go up."""
    on_device = backend == "triton"
    held = torch.cuda.memory_allocated if on_device else _trimmed
    reset = torch.cuda.reset_peak_memory_stats if on_device else _forget_peak
    peak = torch.cuda.max_memory_allocated if on_device else _peak
    SIDES[side](backend)(1)  # what PyTorch and the library set up once
    gc.collect()
    before = held()
    run = SIDES[side](backend)
    run(1)
    loaded = held()
    clips = []
    for length in lengths:
        reset()
        run(length)
        clips.append(peak() - loaded)
    return {"loaded": loaded - before, "clips": clips}


def _forget_peak() -> None:
    CLEAR.write_text(RESET_PEAK)


def _peak() -> int:
    return _resident("VmHWM")


def _trimmed() -> int:
    """The resident set, without what the allocator keeps to use again."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _resident("VmRSS")


def _resident(name: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(sys.argv[1], sys.argv[2], [int(length) for length in sys.argv[3:]])))
