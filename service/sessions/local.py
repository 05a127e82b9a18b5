"""Sessions in this process's memory: all of them where there is no store, and otherwise copies of what it holds."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace

from service.engine.prefixes import TIER
from service.metrics import Metrics
from service.owner import Owner
from service.sessions.session import Session, no_session, overtaken, too_many, two_writers


@dataclass
class _Entry:
    """fence: of the latest lease; leased_until: time.monotonic() seconds, 0 where nobody writes."""

    session: Session
    fence: int = 0
    leased_until: float = 0.0


class LocalSessions:
    """At most `budget_bytes` of sessions that have not expired. Not for several threads at a time.

    The one whose last write is longest ago is given up first, and never one that is being written.
    """

    def __init__(self, budget_bytes: int, metrics: Metrics) -> None:
        self.budget_bytes, self.metrics = budget_bytes, metrics
        self.used_bytes = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._count: Counter[str] = Counter()
        self._of_key: Counter[str] = Counter()

    def put(self, session: Session) -> None:
        """Keep a session, new or replaced."""
        entry = self._entries.get(session.id)
        if entry is None:
            self._entries[session.id] = _Entry(session)
            self._observe(session, 1)
        else:
            self._observe(entry.session, -1)
            entry.session = session
            self._observe(session, 1)
            self._entries.move_to_end(session.id)
        self._make_room()

    def get(self, id: str) -> Session | None:
        """The session, if it is here and has not expired."""
        entry = self._entries.get(id)
        if entry is None:
            return None
        if entry.session.expires_at <= time.time() and entry.leased_until <= time.monotonic():
            self.drop(id)
            return None
        return entry.session

    def drop(self, id: str) -> bool:
        """Forget a session -> whether it was there."""
        entry = self._entries.pop(id, None)
        if entry is not None:
            self._observe(entry.session, -1)
        return entry is not None

    def check_room(self, owner: Owner) -> None:
        """Raises RateLimited where the owner's sessions are as many as may be."""
        if owner.max_sessions is not None and self._of_key[owner.key] >= owner.max_sessions:
            self._drop_expired()
            if self._of_key[owner.key] >= owner.max_sessions:
                raise too_many(owner.key, owner.max_sessions)

    def acquire(self, id: str, lease_s: float, key: str) -> int:
        """As `Store.acquire`."""
        session = self.get(id)
        if session is None or session.key != key:
            raise no_session(id)
        entry, now = self._entries[id], time.monotonic()
        if entry.leased_until > now:
            raise two_writers(id)
        entry.fence += 1
        entry.leased_until = now + lease_s
        return entry.fence

    def write(self, session: Session, fence: int) -> Session:
        """Replace a session under a lease, which ends -> the session with its new version."""
        entry = self._entries.get(session.id)
        if entry is None:
            raise no_session(session.id)
        if entry.fence != fence:
            raise overtaken(session.id)
        session = replace(session, version=entry.session.version + 1)
        entry.leased_until = 0.0
        self.put(session)
        return session

    def release(self, id: str, fence: int) -> None:
        """As `Store.release`."""
        entry = self._entries.get(id)
        if entry is not None and entry.fence == fence:
            entry.leased_until = 0.0

    def _make_room(self) -> None:
        now, today = time.monotonic(), time.time()
        for id, entry in list(self._entries.items()):
            expired = entry.session.expires_at <= today
            if not expired and self.used_bytes <= self.budget_bytes:
                return  # those that follow were written later, and expire later
            if entry.leased_until <= now and id != next(reversed(self._entries)):
                self.drop(id)
                if not expired:
                    self.metrics.snapshot_evictions_total.labels(entry.session.model, TIER).inc()

    def _drop_expired(self) -> None:
        for id in list(self._entries):
            if self.get(id) is not None:
                return  # those that follow expire later

    def _observe(self, session: Session, sign: int) -> None:
        self.used_bytes += sign * session.snapshot.bytes
        self._count[session.model] += sign
        self._of_key[session.key] += sign
        if not self._of_key[session.key]:
            del self._of_key[session.key]
        self.metrics.sessions.labels(session.model, TIER).set(self._count[session.model])
        self.metrics.snapshot_bytes.labels(session.model, TIER).inc(sign * session.snapshot.bytes)
