"""Which steps of which requests run next, and on which slots. Bookkeeping only: it never sees a tensor."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.engine.request import Batch, Request, Result, Work
from service.errors import DeadlineExceeded, Internal, ServiceError

Retired = Callable[[Request, str], None]


class Scheduler:
    """One model's requests, in order of arrival, on a fixed number of slots. Used by the engine thread alone.

    A batch holds at most one chunk of each request, at most `chunk_steps` long, and `step_budget` steps in all. A
    request takes a slot as soon as one is free, and those on slots take turns: each that was served goes to the back,
    so that a long sequence delays the others by one chunk and no more. `retired(request, outcome)` is told of each
    request that leaves, with outcome completed | failed | cancelled | deadline; `_retire` is the only way out.
    """

    def __init__(self, slots: int, chunk_steps: int, step_budget: int, retired: Retired) -> None:
        self.slots, self.chunk_steps, self.step_budget = slots, chunk_steps, step_budget
        self._retired = retired
        self._free = list(range(slots))[::-1]
        self._waiting: deque[Request] = deque()
        self._running: deque[Request] = deque()

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests on a slot."""
        return len(self._running)

    def add(self, request: Request) -> None:
        """Put a request at the end of the queue. Its steps must be at least 1."""
        assert request.steps >= 1, "a sequence has steps"
        self._waiting.append(request)

    def schedule(self) -> Batch | None:
        """The next batch, or None where nothing is left to run. Drops what was cancelled or came too late first."""
        self._drop_dead(time.monotonic())
        while self._waiting and self._free:
            self._waiting[0].slot = self._free.pop()
            self._running.append(self._waiting.popleft())
        works: list[Work] = []
        budget = self.step_budget
        for request in list(self._running):
            if budget == 0:
                break
            works.append(self._work(request, budget))
            budget -= works[-1].stop - works[-1].start
            self._running.rotate(-1)  # the requests served last are the first of the queue's tail
        return Batch(tuple(works)) if works else None

    def deliver(self, batch: Batch, outputs: Sequence[NDArray[np.float32]]) -> list[Request]:
        """Note what a batch gave, one array [reads, outputs] a work; -> the requests whose outputs are not finite."""
        nonfinite = []
        for work, values in zip(batch.works, outputs, strict=True):
            request = work.request
            request.done = work.stop
            if values.shape[0]:
                request.outputs.append(values)
            if not np.isfinite(values).all():
                nonfinite.append(request)
                self._retire(request, "failed", Internal("the model gave a value that is not finite for this input"))
            elif request.remaining == 0:
                self._retire(request, "completed")
        return nonfinite

    def fail(self, batch: Batch, error: Exception) -> None:
        """Answer every request of a batch that raised. The rows it may have half written belong to nobody then."""
        for work in batch.works:
            failure = (
                error if isinstance(error, ServiceError) else Internal("inference failed; the request may be retried")
            )
            self._retire(work.request, "failed", failure)

    def fail_all(self, error: ServiceError) -> None:
        """Answer everything, waiting or running."""
        for request in [*self._running, *self._waiting]:
            self._retire(request, "failed", error)

    def _work(self, request: Request, budget: int) -> Work:
        assert request.slot is not None
        if request.started_s is None:
            request.started_s = time.monotonic()
        stop = request.done + min(request.remaining, self.chunk_steps, budget)
        return Work(request, request.slot, request.done, stop, fresh=request.done == 0)

    def _drop_dead(self, now: float) -> None:
        for request in [*self._running, *self._waiting]:
            if request.future.cancelled():
                self._retire(request, "cancelled")
            elif request.deadline is not None and now >= request.deadline:
                where = "in the queue" if request.started_s is None else "while running"
                error = DeadlineExceeded(f"the deadline passed {where}, after {request.done} of {request.steps} steps")
                self._retire(request, "deadline", error)

    def _retire(self, request: Request, outcome: str, error: ServiceError | None = None) -> None:
        if request.slot is not None:
            self._running.remove(request)
            self._free.append(request.slot)
            request.slot = None
        else:
            self._waiting.remove(request)
        started = request.started_s or request.submitted_s
        # A future that was cancelled meanwhile takes no result; the request leaves all the same.
        if not request.future.set_running_or_notify_cancel():
            outcome = "cancelled"
        elif error is not None:
            request.future.set_exception(error)
        else:
            outputs = np.concatenate(request.outputs)
            request.future.set_result(Result(outputs, started - request.submitted_s, time.monotonic() - started))
        self._retired(request, outcome)
