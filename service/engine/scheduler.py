"""Which pieces of which requests run next, and on which slots. Bookkeeping only: it never sees a tensor."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from service.engine.flows import Flow, Flows, least_served
from service.engine.request import Batch, Piece, Request, Work
from service.errors import DeadlineExceeded, Internal, ServiceError

Retired = Callable[[Request[Any], str], None]


class Rows(Protocol):
    """Copies the state of slots out and in, so that a request may go on later on others."""

    def take_out(self, slots: Sequence[int]) -> object | None:
        """A copy of what these slots hold, or None where there is no memory for it."""

    def put_back(self, slots: Sequence[int], kept: object) -> None:
        """Let these slots hold what others held."""


class Scheduler:
    """One model's requests on a fixed number of slots. Used by the engine thread alone; any other may read its counts.

    Whose turn it is is for `flows` to say. A request takes all of its slots as soon as so many are free; where others
    hold more than their share, requests of theirs are unseated for it, and go on from a copy of their rows later.
    A batch holds every decode piece there is, then chunks of the others, at most `chunk_steps` long each, up to
    `step_budget` steps in all. Those take turns: each that was served goes to the back of its flow. So a long prompt
    delays those that decode, and the other prompts, by one chunk and no more.
    `retired(request, outcome)` is told of each request that leaves, with outcome completed | failed | cancelled |
    deadline; `_retire` is the only way out.
    """

    def __init__(
        self, slots: int, chunk_steps: int, step_budget: int, retired: Retired, rows: Rows | None = None
    ) -> None:
        """step_budget: at least twice the slots where requests decode, or prompts can starve.

        Without `rows`, nobody is unseated.
        """
        self.slots, self.chunk_steps, self.step_budget = slots, chunk_steps, step_budget
        self._retired, self._rows = retired, rows
        self._free = list(range(slots))[::-1]
        self._flows = Flows()
        self.unseated = 0

    @property
    def waiting(self) -> int:
        """Requests without slots."""
        return sum(len(flow.waiting) for flow in self._flows)

    @property
    def running(self) -> int:
        """Requests on slots."""
        return sum(len(flow.running) for flow in self._flows)

    @property
    def idle(self) -> bool:
        """Whether it has no requests."""
        return not any(flow.active for flow in self._flows)

    @property
    def used(self) -> int:
        """Slots that belong to a request."""
        return self.slots - len(self._free)

    def add(self, request: Request[Any]) -> None:
        """Put a request at the end of the queue. It must need at least one slot and no more than there are."""
        assert 1 <= request.program.rows <= self.slots, "a request fits on the slots"
        self._flows.add(request)

    def schedule(self) -> Batch | None:
        """The next batch, or None where nothing is left to run. Drops what was cancelled or came too late first."""
        self._drop_dead(time.monotonic())
        self._seat()
        works: list[Work] = []
        prompts: dict[Flow, deque[tuple[Request[Any], Piece]]] = {}
        for flow in self._flows:
            for request in flow.running:
                for piece in request.program.pieces():
                    if piece.decode:
                        works.append(_work(request, piece, piece.stop))
                        flow.serve(works[-1].steps)
                    else:
                        prompts.setdefault(flow, deque()).append((request, piece))
        room = self.step_budget - sum(work.steps for work in works)
        while prompts and room > 0:
            flow = least_served(prompts)
            request, piece = prompts[flow].popleft()
            works.append(_work(request, piece, min(piece.stop, piece.start + min(self.chunk_steps, room))))
            room -= works[-1].steps
            flow.serve(works[-1].steps)
            flow.running.remove(request)  # to the back of its flow
            flow.running.append(request)
            if not prompts[flow]:
                del prompts[flow]
        return Batch(tuple(works)) if works else None

    def _seat(self) -> None:
        """Give slots to those who wait, as long as there are any to give."""
        while (flow := self._flows.next_to_seat()) is not None:
            request = flow.waiting[0]
            needed = request.program.rows
            if needed > len(self._free):
                self._unseat(flow, needed - len(self._free))
            if needed > len(self._free):
                return  # it is next: who came later does not take the slots that it waits for
            flow.seat(request, tuple(self._free.pop() for _ in range(needed)))
            if request.kept is not None:
                assert self._rows is not None
                self._rows.put_back(request.slots, request.kept)
                request.kept = None

    def _unseat(self, flow: Flow, slots: int) -> None:
        """Take slots for a flow from those that hold more than their share, if there are any."""
        if self._rows is None:
            return
        for request in self._flows.to_unseat(flow, slots):
            request.kept = self._rows.take_out(request.slots)
            if request.kept is None:
                return
            its = self._flows.of(request.owner)
            self._free.extend(its.unseat(request))
            its.waiting.appendleft(request)
            self.unseated += 1

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
        for request in self._all():
            self._retire(request, "failed", error)

    def _all(self) -> list[Request[Any]]:
        return [request for flow in self._flows for request in (*flow.running, *flow.waiting)]

    def _drop_dead(self, now: float) -> None:
        for request in self._all():
            if request.future.cancelled():
                self._retire(request, "cancelled")
            elif request.deadline is not None and now >= request.deadline:
                where = "in the queue" if request.started_s is None else "while running"
                error = DeadlineExceeded(f"the deadline passed {where}, after {request.program.progress}")
                self._retire(request, "deadline", error)

    def _retire(self, request: Request[Any], outcome: str, error: ServiceError | None = None) -> None:
        flow = self._flows.of(request.owner)
        if request.slots:
            self._free.extend(flow.unseat(request))
        else:
            flow.waiting.remove(request)
            request.kept = None
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
