"""How many threads the arithmetic may use: the processors that the process may run on, within its quota of them."""

from __future__ import annotations

import math
import os
from pathlib import Path


def default_threads(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The processors of the affinity mask, or fewer where the control group's quota is less. At least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    processors = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, processors if quota is None else min(processors, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Processors' worth of time that the group may take, by version 2 or version 1 of control groups; None: any."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return None
    if limit == "max" or float(limit) <= 0 or float(period) <= 0:
        return None
    return float(limit) / float(period)
