"""One core for everything, so that ours and a rival have the same one, and all cores where a figure says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

AFFINITY = hasattr(os, "sched_setaffinity")  # Linux
ALL = frozenset(os.sched_getaffinity(0)) if AFFINITY else frozenset[int]()


def pin() -> None:
    """Keep this thread, and the threads and processes that it starts, on the last core that it may use."""
    if AFFINITY:
        os.sched_setaffinity(0, {max(ALL)})


@contextmanager
def unpinned() -> Iterator[None]:
    """Within, all cores that the process had when it started; then the one of before."""
    if not AFFINITY:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
