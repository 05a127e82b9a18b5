"""What jobs that write a session share: they take its lease first, and answer once the new state is kept."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from service.engine.snapshots import Snapshot
from service.errors import InvalidInput
from service.job import Job, R
from service.owner import Owner
from service.sessions.sessions import Held

if TYPE_CHECKING:
    from service.runtime import Runtime


class Writing(Job[R]):
    """A job that goes on from a state, and in a session leaves one. session_id: None for a job without a session.

    A job that fails, or whose client goes away before its end, leaves the session as it was.
    """

    def __init__(
        self, runtime: Runtime, deadline: float | None, request_id: str, session_id: str | None, owner: Owner
    ) -> None:
        super().__init__(runtime, deadline, request_id, owner)
        self.session_id = session_id
        self.held: Held | None = None

    def hold(self, model: str) -> Snapshot | None:
        """Take the session's lease -> its state. In a worker. Raises NotFound, SessionConflict, InvalidInput."""
        if self.session_id is None:
            return None
        settings, sessions = self.runtime.settings, self.runtime.sessions
        left_s = settings.max_deadline_ms / 1000 if self.deadline is None else self.deadline - time.monotonic()
        self.held = held = sessions.acquire(self.session_id, max(left_s, 0.0), self.owner.key)
        self.answer.add_done_callback(lambda _: sessions.let_go(held))
        if held.session.model != model:
            raise InvalidInput.at(("model",), f"session {self.session_id} is of {held.session.model}, not of {model}")
        return held.session.snapshot

    def keep(self, snapshot: Snapshot, answer: R) -> None:
        """Write the session's new state, then answer."""
        held = self.held
        assert held is not None, "only a session keeps a state"

        def commit() -> None:
            try:
                held.commit(snapshot, self.request_id)
            except Exception as error:
                self.fail(error)
            else:
                self.succeed(answer)

        self.runtime.sessions.later(commit)
