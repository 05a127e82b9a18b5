"""Cores of its own for the service: a generator of load must not take them from what it measures.

At ten times the capacity the clients alone can fill a core, and on shared cores they would show as the service's loss.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Halves:
    """Cores that share none."""

    service: frozenset[int]
    clients: frozenset[int]

    def counts(self) -> dict[str, int]:
        """How many the service has, and each client may run on."""
        return {"service": len(self.service), "client": len(self.clients)}


def halves() -> Halves | None:
    """The cores that this process may use, halved; the odd one is the service's. None where there is one, or no say."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    cut = len(cores) // 2
    return Halves(frozenset(cores[cut:]), frozenset(cores[:cut])) if cut else None


@contextmanager
def pinned(cores: frozenset[int] | None) -> Iterator[None]:
    """Within, this thread keeps to these cores, and so do the threads and processes that it starts. None: to any."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
