"""A scheduler without an engine, and what it said of those that left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.engine.clip_program import ClipProgram, Result
from service.engine.request import Batch, Request
from service.engine.scheduler import Scheduler
from service.features.types import Clip


@dataclass
class Desk:
    """A scheduler and what it said of those that left. Outputs are the steps that a work ended with."""

    slots: int = 2
    chunk_steps: int = 4
    step_budget: int = 8
    left: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.slots, self.chunk_steps, self.step_budget, self._retired)

    def _retired(self, request: Request[Any], outcome: str) -> None:
        self.left.append((request.id, outcome))

    def add(self, name: str, steps: int, *, read_all: bool = False, deadline: float | None = None) -> Request[Result]:
        clip = Clip({}, np.ones((1, steps), bool), np.arange(steps) / 1.0)
        request = Request(name, ClipProgram(clip, read_all), deadline)
        self.scheduler.add(request)
        return request

    def schedule(self) -> Batch:
        batch = self.scheduler.schedule()
        assert batch is not None
        return batch

    def deliver(self, batch: Batch, *, nan: str = "") -> dict[Request[Any], Exception]:
        outputs = []
        for work in batch.works:
            rows = np.arange(work.start + 1, work.stop + 1, dtype=np.float32)[:, None]
            rows = rows[work.request.program.reads(work)]
            outputs.append(np.full((1, 1), np.nan, np.float32) if work.request.id == nan else rows)
        return self.scheduler.deliver(batch, outputs)

    def turn(self) -> list[tuple[str, int, int]]:
        """Schedule and deliver -> (request, start, stop) of every work."""
        batch = self.schedule()
        self.deliver(batch)
        return [(work.request.id, work.start, work.stop) for work in batch.works]

    def assert_idle(self) -> None:
        """Nothing is left, and every slot is free exactly once."""
        assert self.scheduler.schedule() is None
        assert (self.scheduler.running, self.scheduler.waiting) == (0, 0)
        probes = [self.add(f"probe {number}", 1) for number in range(self.slots + 1)]
        self.schedule()
        assert sorted(slot for probe in probes for slot in probe.slots) == list(range(self.slots))
