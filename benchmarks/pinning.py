"""One core for everything, so that ours and a rival have the same one, and all cores where a figure says so."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

from load_tests.cores import pinned

AFFINITY = hasattr(os, "sched_setaffinity")  # Linux
ALL = frozenset(os.sched_getaffinity(0)) if AFFINITY else frozenset[int]()


def pin() -> None:
    """Keep this thread, and the threads and processes that it starts, on the last core that it may use."""
    if AFFINITY:
        os.sched_setaffinity(0, {max(ALL)})


def unpinned() -> AbstractContextManager[None]:
    """Within, all cores that the process had when it started; then the one of before."""
    return pinned(ALL if AFFINITY else None)
