"""A live session's place among the sessions: under a lease while a socket is open, written now and then."""

from __future__ import annotations

import logging
import time

from service.engine.snapshots import Snapshot
from service.errors import InvalidInput, NotFound, Overloaded, SessionConflict
from service.owner import ANYONE, Owner
from service.runtime import Runtime
from service.served import ServedModel
from service.sessions.session import two_writers
from service.sessions.sessions import Held

log = logging.getLogger(__name__)

# What of a stream is lost at most where its process dies.
CHECKPOINT_S = 30.0
LEASE_SLACK_S = 30.0


class KeptStream:
    """Its methods wait for the store: not for the event loop.

    state  that the stream goes on from
    own    it began with the stream, and is forgotten with it where the stream comes to its end
    """

    def __init__(
        self,
        runtime: Runtime,
        model: ServedModel,
        session_id: str | None,
        start: Snapshot | None,
        owner: Owner = ANYONE,
    ) -> None:
        """Take a session's lease, or begin one from a state.

        Raises NotFound, SessionConflict, InvalidInput, Overloaded.
        """
        self._sessions, self.own, self._key = runtime.sessions, session_id is None, owner.key
        # Between two messages nothing renews the lease.
        self._lease_s = CHECKPOINT_S + runtime.settings.stream_idle_s + LEASE_SLACK_S
        if session_id is None:
            session_id = self._sessions.create(model.name, start or model.snapshots.initial(), owner).id
        self.id = session_id
        self._held: Held = self._sessions.acquire(session_id, self._lease_s, self._key)
        if self._held.session.model != model.name:
            self._held.release()
            raise InvalidInput.at(("model",), f"the session is of {self._held.session.model}, not of {model.name}")
        self.state = self._held.session.snapshot
        self._written_s = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() >= self._written_s + CHECKPOINT_S

    def write(self, snapshot: Snapshot) -> None:
        """Write the session and keep its lease. Raises NotFound, SessionConflict where it is ours no longer."""
        self._written_s = time.monotonic()
        try:
            written = self._held.commit(snapshot)
            held = self._sessions.acquire(self.id, self._lease_s, self._key)
        except Overloaded:
            log.warning("a stream could not be written; it goes on", extra={"session": self.id})
            return
        if held.session.version != written.version:
            held.release()
            raise two_writers(self.id)
        self._held = held

    def leave(self, snapshot: Snapshot) -> None:
        """Write the session and let go of it: the socket is gone, its client may come back."""
        try:
            self._held.commit(snapshot)
        except (NotFound, SessionConflict, Overloaded) as error:
            log.warning("a stream's end could not be written: %s", error.detail, extra={"session": self.id})
            self._held.release()

    def let_go(self) -> None:
        """Let go of the session as it was last written: a message was taken in part, and is to come again."""
        self._held.release()

    def abandon(self) -> None:
        """Let go of the session as it was; what was begun for the stream is forgotten."""
        if self.own:
            self._sessions.delete(self.id, self._key)
        else:
            self._held.release()

    def end(self, snapshot: Snapshot) -> None:
        """The stream came to its end: forget what began with it, write what did not. Raises as `write` does."""
        if self.own:
            self._sessions.delete(self.id, self._key)
        else:
            self._held.commit(snapshot)
