"""Which pieces of which requests run next, and on which slots. Bookkeeping only: it never sees a tensor."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from service.engine.request import Batch, Piece, Request, Work
from service.errors import DeadlineExceeded, Internal, ServiceError

Retired = Callable[[Request[Any], str], None]


class Scheduler:
    """One model's requests, in order of arrival, on a fixed number of slots. Used by the engine thread alone.

    A request takes all of its slots as soon as so many are free. A batch holds every decode piece there is, then chunks
    of the others, at most `chunk_steps` long each, up to `step_budget` steps in all. Those take turns: each that was
    served goes to the back. So a long prompt delays those that decode, and the other prompts, by one chunk and no more.
    `retired(request, outcome)` is told of each request that leaves, with outcome completed | failed | cancelled |
    deadline; `_retire` is the only way out.
    """

    def __init__(self, slots: int, chunk_steps: int, step_budget: int, retired: Retired) -> None:
        """step_budget: at least twice the slots where requests decode, or prompts can starve."""
        self.slots, self.chunk_steps, self.step_budget = slots, chunk_steps, step_budget
        self._retired = retired
        self._free = list(range(slots))[::-1]
        self._waiting: deque[Request[Any]] = deque()
        self._running: list[Request[Any]] = []

    @property
    def waiting(self) -> int:
        """Requests without slots."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests on slots."""
        return len(self._running)

    @property
    def used(self) -> int:
        """Slots that belong to a request."""
        return self.slots - len(self._free)

    def add(self, request: Request[Any]) -> None:
        """Put a request at the end of the queue. It must need at least one slot and no more than there are."""
        assert 1 <= request.program.rows <= self.slots, "a request fits on the slots"
        self._waiting.append(request)

    def schedule(self) -> Batch | None:
        """The next batch, or None where nothing is left to run. Drops what was cancelled or came too late first."""
        self._drop_dead(time.monotonic())
        while self._waiting and self._waiting[0].program.rows <= len(self._free):
            request = self._waiting.popleft()
            request.slots = tuple(self._free.pop() for _ in range(request.program.rows))
            self._running.append(request)
        ready = [(request, piece) for request in self._running for piece in request.program.pieces()]
        works = [_work(request, piece, piece.stop) for request, piece in ready if piece.decode]
        room = self.step_budget - sum(work.steps for work in works)
        served: dict[Request[Any], None] = {}
        for request, piece in ready:
            if not piece.decode and room > 0:
                stop = min(piece.stop, piece.start + min(self.chunk_steps, room))
                works.append(_work(request, piece, stop))
                served[request] = None
                room -= works[-1].steps
        self._running = [request for request in self._running if request not in served] + list(served)
        return Batch(tuple(works)) if works else None

    def deliver(self, batch: Batch, outputs: Sequence[Any]) -> dict[Request[Any], Exception]:
        """Hand each work's output to its program; -> the requests that it failed, which have been answered."""
        failed: dict[Request[Any], Exception] = {}
        for work in batch.works:
            work.request.owner.spend(work.steps)
        for work, output in zip(batch.works, outputs, strict=True):
            if work.request in failed:
                continue
            try:
                work.request.program.advance(work, output)
            except Exception as error:
                failed[work.request] = error
        for request in batch.requests:
            if request in failed:
                self._retire(request, "failed", _answer(failed[request]))
            elif request.program.finished:
                self._retire(request, "completed")
        return failed

    def fail(self, batch: Batch, error: Exception) -> None:
        """Answer every request of a batch that raised. The rows it may have half written belong to nobody then."""
        for request in batch.requests:
            self._retire(request, "failed", _answer(error))

    def fail_all(self, error: ServiceError) -> None:
        """Answer everything, waiting or running."""
        for request in [*self._running, *self._waiting]:
            self._retire(request, "failed", error)

    def _drop_dead(self, now: float) -> None:
        for request in [*self._running, *self._waiting]:
            if request.future.cancelled():
                self._retire(request, "cancelled")
            elif request.deadline is not None and now >= request.deadline:
                where = "in the queue" if request.started_s is None else "while running"
                error = DeadlineExceeded(f"the deadline passed {where}, after {request.program.progress}")
                self._retire(request, "deadline", error)

    def _retire(self, request: Request[Any], outcome: str, error: ServiceError | None = None) -> None:
        if request.slots:
            self._running.remove(request)
            self._free.extend(request.slots)
            request.slots = ()
        else:
            self._waiting.remove(request)
        started = request.started_s or request.submitted_s
        # A future that was cancelled meanwhile takes no result; the request leaves all the same.
        if not request.future.set_running_or_notify_cancel():
            outcome = "cancelled"
        elif error is not None:
            request.future.set_exception(error)
        else:
            now = time.monotonic()
            request.future.set_result(request.program.result(started - request.submitted_s, now - started))
        self._retired(request, outcome)


def _work(request: Request[Any], piece: Piece, stop: int) -> Work:
    if request.started_s is None:
        request.started_s = time.monotonic()
    fork_of = None if piece.fork_of is None else request.slots[piece.fork_of]
    return Work(
        request,
        piece.row,
        request.slots[piece.row],
        piece.start,
        stop,
        piece.fresh,
        piece.decode,
        fork_of,
        piece.restore,
        piece.capture and stop == piece.stop,
    )


def _answer(error: Exception) -> ServiceError:
    return error if isinstance(error, ServiceError) else Internal("inference failed; the request may be retried")
