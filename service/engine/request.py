"""The engine's vocabulary: a program and its pieces, a request, a piece of work, a batch.

A piece, a work and a batch are not changed once they are made. They are not frozen all the same: a frozen dataclass
takes three times as long to make, which is felt where a step is short.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from service.engine.snapshots import Snapshot
from service.errors import Internal
from service.owner import ANYONE, Owner

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class NotFinite(Internal):
    """The model gave a value that is no number."""

    def __init__(self) -> None:
        super().__init__("the model gave a value that is not finite for this input")


@dataclass(eq=False, slots=True)
class Piece:
    """Steps start:stop of one of a request's rows, which can run now, at most one piece a row.

    row      from 0; each row has a slot of its own
    fresh    start from the initial state, whatever the slot holds
    decode   all of it runs in the next batch, with every other such piece; of another, as much as there is room for
    restore  the state that the row takes over first
    fork_of  the row whose state, as it was before the batch but after what is restored, this one takes over first
    capture  the state at its end is kept: see `Program.captured`
    """

    row: int
    start: int
    stop: int
    fresh: bool
    decode: bool = False
    fork_of: int | None = None
    restore: Snapshot | None = None
    capture: bool = False


class Program(Protocol[R_co]):
    """What a request computes: which of its pieces can run, and what becomes of their outputs."""

    @property
    def rows(self) -> int:
        """Slots that it needs, from its first piece to its end."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to run."""

    @property
    def progress(self) -> str:
        """How far it has come, for whoever reads that it came too late: "4 of 30 steps"."""

    def pieces(self) -> Iterable[Piece]:
        """What can run now; at least one piece until it has finished."""

    def captured(self, work: Work, snapshot: Snapshot | None) -> None:
        """Take the state at the end of a work, before `advance` of it; None where it is not finite."""

    def advance(self, work: Work, output: Any) -> None:
        """Take note of what the runner gave for a work. What it raises fails the request: NotFinite, for one."""

    def result(self, queue_s: float, inference_s: float) -> R_co:
        """The answer, once finished: seconds that it waited for a slot, and from then on."""


@dataclass(eq=False)
class Request(Generic[R]):
    """A program to be run. It owns its slots from when all of them are free for it until it is retired.

    id        of the client's request, for the logs
    deadline  time.monotonic() seconds, or None
    owner     on whose behalf
    kept      its rows, while it is without slots though it has begun
    trace     where its spans belong, see `service.tracing`; None: it is not recorded
    future    resolves to the program's result or a ServiceError; cancelling it retires the request within a step
    """

    id: str
    program: Program[R]
    deadline: float | None = None
    owner: Owner = ANYONE
    future: Future[R] = field(default_factory=Future)
    submitted_s: float = field(default_factory=time.monotonic)
    started_s: float | None = None
    slots: tuple[int, ...] = ()
    kept: object | None = None
    trace: Any = None


@dataclass(eq=False, slots=True)
class Work:
    """A piece, or its beginning, on its slot.

    restore  what is copied to its row first            fork_of  the slot whose row is copied to its own then
    capture  whether the state at its end is kept
    """

    request: Request[Any]
    row: int
    slot: int
    start: int
    stop: int
    fresh: bool
    decode: bool = False
    fork_of: int | None = None
    restore: Snapshot | None = None
    capture: bool = False

    @property
    def steps(self) -> int:
        """How many there are."""
        return self.stop - self.start


@dataclass(eq=False, slots=True)
class Batch:
    """Work that runs in one call of the model."""

    works: tuple[Work, ...]

    @property
    def steps(self) -> int:
        """Steps of all its work."""
        return sum(work.steps for work in self.works)

    @property
    def forks(self) -> tuple[tuple[int, int], ...]:
        """(from, to) slots, to be copied before the batch runs."""
        return tuple((work.fork_of, work.slot) for work in self.works if work.fork_of is not None)

    @property
    def restores(self) -> tuple[tuple[Snapshot, int], ...]:
        """(state, slot), to be copied before the forks are."""
        return tuple((work.restore, work.slot) for work in self.works if work.restore is not None)

    @property
    def phase(self) -> str:
        """decode: tokens of answers only; step: one step of each sequence; prefill: anything longer."""
        if all(work.decode for work in self.works):
            return "decode"
        return "step" if all(work.steps == 1 for work in self.works) else "prefill"

    @property
    def requests(self) -> list[Request[Any]]:
        """Those that have work in it, each once."""
        return list(dict.fromkeys(work.request for work in self.works))

    def halves(self) -> tuple[Batch, ...]:
        """The same work in two batches, a request's together; nothing where there is one request only."""
        requests = self.requests
        if len(requests) == 1:
            return ()
        first = set(requests[: len(requests) // 2])
        return (
            Batch(tuple(work for work in self.works if work.request in first)),
            Batch(tuple(work for work in self.works if work.request not in first)),
        )
