"""Who is let in: within the limits of what may be inside at once, and only where the answer can come in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from service.engine.admission import Admission, Load
from service.engine.pace import Pace
from service.errors import Overloaded
from service.job import Job
from service.served import GenerativeModel, ServedModel

ONE = Load(sequences=1)

R = TypeVar("R")


class Entrance:
    """The way in for jobs. `paces`: {model: how soon what is inside for it will be done}."""

    def __init__(self, admission: Admission, models: Mapping[str, ServedModel | GenerativeModel]) -> None:
        self._admission = admission
        self.paces = {name: Pace() for name in models}
        self._paces_for: dict[str, list[Pace]] = {}  # by task
        for name, model in models.items():
            self._paces_for.setdefault(model.task, []).append(self.paces[name])

    def check_room(self, task: str, deadline: float, key: str = "", coming: int = 0) -> None:
        """Raise Overloaded where no model for the task could answer by `deadline`: before a body is read.

        coming: so many that were let in here have not been admitted yet.
        """
        paces = self._paces_for.get(task, [])
        if paces and not any(pace.allows(deadline, key, coming) for pace in paces):
            raise _too_late(min(pace.wait_s(key, coming) for pace in paces))
        self._admission.check(ONE, key)

    def admit(self, job: Job[R], load: Load, start: Callable[[], None], paced_by: str | None = None) -> Future[R]:
        """Start a job inside the limits of sequences and steps, if it can be answered in time. Raises Overloaded.

        load      the most that it can take; what could not fit at all may have everything
        paced_by  the model whose pace decides, and counts it; None: neither
        """
        key, pace = job.owner.key, None if paced_by is None else self.paces[paced_by]
        if pace is not None and not pace.allows(job.deadline, key):
            raise _too_late(pace.wait_s(key))
        load = replace(load, steps=min(load.steps, self._admission.limit.steps))
        job.ticket = ticket = self._admission.enter(load, key)
        if pace is not None:
            pace.enter(key)

        def leave(answer: Future[R]) -> None:
            ticket.leave()
            if pace is not None:
                pace.leave(not answer.cancelled() and answer.exception() is None, key)

        job.answer.add_done_callback(leave)
        try:
            start()
        except BaseException as error:
            if not job.answer.done():
                job.answer.set_exception(error)  # and it leaves
            raise
        return job.answer


def _too_late(wait_s: float) -> Overloaded:
    return Overloaded(
        f"what is in work takes about {1000 * wait_s:.0f} ms, too long for an answer by the deadline; try again later",
        retry_after_s=wait_s,
    )
