"""What the jobs of /predict and /generate share: a request on its way through the workers and then the engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

from service.engine.admission import Ticket
from service.engine.request import Program, Request
from service.errors import DeadlineExceeded, Internal, ServiceError
from service.owner import Owner

if TYPE_CHECKING:
    from service.runtime import Runtime

logger = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")


class Job(Generic[R]):
    """One request, moved along by the callbacks of its futures. `answer` is what the client waits for.

    ticket: what it was admitted with.

    deadline in time.monotonic() seconds, or None.
    """

    def __init__(self, runtime: Runtime, deadline: float | None, request_id: str, owner: Owner) -> None:
        self.runtime, self.deadline, self.request_id, self.owner = runtime, deadline, request_id, owner
        self.answer: Future[R] = Future()
        self.trace = runtime.tracing.current()
        self.ticket: Ticket | None = None

    def prepare(self, what: str, prepare: Callable[[], T], infer: Callable[[T], None], *, light: bool = False) -> None:
        """Run `prepare` in a worker, then `infer` with what it gave; what either raises is the answer.

        what   "its features were extracted", for whoever is late by then
        light  it takes less than a worker and back cost (some .2 ms on a busy interpreter): it runs here

        Raises Overloaded where no worker has room.
        """

        def checked() -> T:
            self._check_deadline(f"before {what}")
            begun = time.monotonic()
            try:
                prepared = prepare()
            finally:
                self.runtime.tracing.record(self.trace, "features", begun, time.monotonic())
            self._check_deadline(f"while {what}")
            return prepared

        def go_on(prepared: Callable[[], T]) -> None:
            try:
                infer(prepared())
            except Exception as error:
                self.fail(error)

        def done(preparing: Future[T]) -> None:
            if self.answer.cancelled() or preparing.cancelled():
                self.runtime.metrics.cancellations_total.labels("features").inc()
            else:
                go_on(preparing.result)

        if light:
            go_on(checked)
            return
        preparing = self.runtime.workers.submit(checked)
        self.answer.add_done_callback(lambda answer: answer.cancelled() and preparing.cancel())
        preparing.add_done_callback(done)

    def request(self, program: Program[T]) -> Request[T]:
        """A program of this job, for the engine."""
        return Request(self.request_id, program, self.deadline, self.owner, trace=self.trace)

    def settle(self, steps: int) -> None:
        """So many steps will run, where up to most_steps were admitted."""
        if self.ticket is not None:
            self.ticket.settle(steps)

    def succeed(self, result: R) -> None:
        """Answer, unless the client has gone."""
        if self.answer.set_running_or_notify_cancel():
            self.answer.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Answer with an error; one that is not for clients is logged, and answered as internal."""
        if not isinstance(error, ServiceError):
            logger.error("request failed", exc_info=error, extra=self._names())
            error = Internal("the service failed on this request; it may be retried")
        if not self.answer.done() and self.answer.set_running_or_notify_cancel():
            self.answer.set_exception(error)

    def _names(self) -> dict[str, str]:
        return {"request_id": self.request_id, **self.runtime.tracing.names(self.trace)}

    def _check_deadline(self, where: str) -> None:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise DeadlineExceeded(f"the deadline passed {where}")
