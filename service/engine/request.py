"""The engine's vocabulary: a request, a piece of work, a batch, a result."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Result:
    """What a request's steps gave. outputs [reads, outputs] float32: the head at the last step, or at every step."""

    outputs: NDArray[np.float32]
    queue_s: float
    inference_s: float


@dataclass(eq=False)
class Request:
    """A sequence to be advanced. It owns a slot from when one is free for it until it is retired.

    id        of the client's request, for the logs
    steps     of the whole sequence
    payload   what the runner reads steps from; nothing else looks at it
    read_all  evaluate the head at every step, not at the last one only
    deadline  time.monotonic() seconds, or None
    future    resolves to a Result or a ServiceError; cancelling it retires the request within a step
    """

    id: str
    steps: int
    payload: Any
    read_all: bool = False
    deadline: float | None = None
    future: Future[Result] = field(default_factory=Future)
    submitted_s: float = field(default_factory=time.monotonic)
    started_s: float | None = None
    slot: int | None = None
    done: int = 0
    outputs: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        """Steps still to run."""
        return self.steps - self.done


@dataclass(frozen=True)
class Work:
    """Steps start:stop of a request, on its slot; `fresh` at the sequence's beginning."""

    request: Request
    slot: int
    start: int
    stop: int
    fresh: bool


@dataclass(frozen=True)
class Batch:
    """Work that runs in one call of the model."""

    works: tuple[Work, ...]

    @property
    def steps(self) -> int:
        """Steps of all its work."""
        return sum(work.stop - work.start for work in self.works)
