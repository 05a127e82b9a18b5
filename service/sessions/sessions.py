"""The sessions of a process: made, read, written under a lease, forgotten.

    acquire -> Held -> (run the steps) -> commit | release

Where a store is configured it is asked each time, and states are written through to it: any replica can go on, and
what this process gives up for lack of room is only a copy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from service.engine.snapshots import Snapshot, SnapshotFormat
from service.errors import NotFound, Overloaded, SessionConflict, TooLarge
from service.metrics import Metrics
from service.owner import ANYONE, Owner
from service.sessions.census import Census
from service.sessions.leases import Leases
from service.sessions.local import LocalSessions
from service.sessions.session import Session, Store, Stored, make_session_id, no_session

THREADS = 4  # that wait for the store
LEASE_SLACK_S = 5.0  # after the deadline of the request that writes


class Sessions:
    """May be used from any thread; with a store, its methods wait for it. ttl_s: from a session's last write."""

    def __init__(
        self,
        formats: Mapping[str, SnapshotFormat],
        metrics: Metrics,
        *,
        ttl_s: float,
        budget_bytes: int,
        store: Store | None = None,
        lease_s: float = 10.0,
    ) -> None:
        """formats: by model. lease_s: for how long a process that died keeps others from writing its sessions."""
        self.formats, self.metrics, self.ttl_s, self.store = formats, metrics, ttl_s, store
        self._leases = None if store is None else Leases(store, lease_s)
        self.census = None if store is None else Census(store, formats, metrics)
        self._local = LocalSessions(budget_bytes, metrics)
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="sessions")

    def create(self, model: str, snapshot: Snapshot, owner: Owner = ANYONE) -> Session:
        """A new session that goes on from a state of a model. Raises TooLarge, RateLimited."""
        if snapshot.bytes > self._local.budget_bytes:
            budget = self._local.budget_bytes
            raise TooLarge(f"a session of {model} takes {snapshot.bytes} bytes; sessions have {budget} in all")
        now = time.time()
        session = Session(make_session_id(), model, snapshot, 0, now, now + self.ttl_s, owner.key)
        if self.store is not None:
            data = self.formats[model].dump(snapshot)
            stored = Stored(model, 0, now, session.expires_at, data, owner.key)
            self.store.create(session.id, stored, owner.max_sessions)
        with self._lock:
            if self.store is None:
                self._local.check_room(owner)
            self._local.put(session)
        return session

    def show(self, id: str, key: str = "") -> Session:
        """A key's session as it was last written. Raises NotFound, for another key's too."""
        session = self._show(id)
        if session.key != key:
            raise no_session(id)
        return session

    def _show(self, id: str) -> Session:
        with self._lock:
            here = self._local.get(id)
        if self.store is None:
            if here is None:
                raise no_session(id)
            return here
        try:
            stored = self.store.read(id, None if here is None else here.version)
        except NotFound:
            with self._lock:
                self._local.drop(id)
            raise
        if stored.data is None:
            assert here is not None
            return here
        if stored.model not in self.formats:
            raise SessionConflict(f"session {id!r} is of {stored.model!r}, which is not served here")
        snapshot = self.formats[stored.model].load(stored.data)
        times = stored.created_at, stored.expires_at
        session = Session(id, stored.model, snapshot, stored.version, *times, stored.key, stored.request)
        with self._lock:
            self._local.put(session)
        return session

    def acquire(self, id: str, most_s: float, key: str = "") -> Held:
        """A key's session, to be written by the caller alone, who takes that long at the most.

        Raises NotFound, SessionConflict.
        """
        if self._leases is None:
            with self._lock:
                fence = self._local.acquire(id, most_s + LEASE_SLACK_S, key)
        else:
            fence = self._leases.acquire(id, most_s + LEASE_SLACK_S, key)
        try:
            return Held(self, self.show(id, key), fence)
        except BaseException:
            self._release(id, fence)
            raise

    def delete(self, id: str, key: str = "") -> None:
        """Forget a key's session; whoever is writing it will be told. Raises NotFound."""
        session = self.show(id, key)
        with self._lock:
            found = self._local.drop(id)
        if self.store is not None:
            self.store.delete(id, key, session.model)
        elif not found:
            raise no_session(id)

    def later(self, work: Callable[[], None]) -> Future[None]:
        """Do what may wait for the store on a thread where waiting holds nobody up."""
        return self._threads.submit(work)

    def let_go(self, held: Held) -> None:
        """Release on such a thread; after `close`, leases end by themselves."""
        with suppress(RuntimeError):
            self._threads.submit(held.release)

    def close(self) -> None:
        """Finish what was handed to `later`, and let go of the store."""
        self._threads.shutdown()
        if self.census is not None:
            self.census.close()
        if self._leases is not None:
            self._leases.close()
            self._leases.store.close()

    def _write(self, session: Session, fence: int) -> Session:
        if self._leases is None:
            with self._lock:
                return self._local.write(session, fence)
        data = self.formats[session.model].dump(session.snapshot)
        version = self._leases.store.write(session, fence, data)
        self._leases.forget(session.id, fence)
        with self._lock:
            self._local.put(replace(session, version=version))
        return replace(session, version=version)

    def _release(self, id: str, fence: int) -> None:
        if self._leases is None:
            with self._lock:
                self._local.release(id, fence)
            return
        self._leases.forget(id, fence)
        with suppress(Overloaded):  # it does not answer: the lease ends by itself
            self._leases.store.release(id, fence)


@dataclass(frozen=True)
class Held:
    """A session that one request writes. fence: the number of its lease."""

    sessions: Sessions
    session: Session
    fence: int

    def commit(self, snapshot: Snapshot, request: str = "") -> Session:
        """Replace the session's state and let go of it. request: the id of the one that does.

        Raises SessionConflict where the lease has passed to another meanwhile, NotFound where the session has gone;
        nothing is written then.
        """
        expires_at = time.time() + self.sessions.ttl_s
        session = replace(self.session, snapshot=snapshot, expires_at=expires_at, request=request)
        return self.sessions._write(session, self.fence)

    def release(self) -> None:
        """Let go of the session, as it was unless it was committed. May be called more than once."""
        self.sessions._release(self.session.id, self.fence)
