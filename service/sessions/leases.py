"""The leases that this process holds in a store: short, and renewed for as long as their writers may take.

A replica that dies leaves leases behind. As they are short, its sessions can be written elsewhere soon after; as they
are renewed, a writer that takes long keeps its own.
"""

from __future__ import annotations

import logging
import threading
import time

from service.errors import ServiceError
from service.sessions.session import Store

log = logging.getLogger(__name__)


class Leases:
    """May be used from any thread; its methods wait for the store. lease_s: that a lease outlives its process."""

    def __init__(self, store: Store, lease_s: float) -> None:
        self.store, self.lease_s = store, lease_s
        self._until: dict[tuple[str, int], float] = {}  # {(session, fence): the monotonic second of its end}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._renew_often, name="leases", daemon=True)
        self._thread.start()

    def acquire(self, id: str, most_s: float, key: str) -> int:
        """As `Store.acquire`; at the most for `most_s` seconds."""
        fence = self.store.acquire(id, min(self.lease_s, most_s), key)
        if most_s > self.lease_s:
            with self._lock:
                self._until[id, fence] = time.monotonic() + most_s
        return fence

    def forget(self, id: str, fence: int) -> None:
        """Renew it no more."""
        with self._lock:
            self._until.pop((id, fence), None)

    def close(self) -> None:
        """Renew nothing more."""
        self._closing.set()
        self._thread.join()

    def _renew_often(self) -> None:
        while not self._closing.wait(self.lease_s / 4):
            with self._lock:
                held = list(self._until.items())
            for (id, fence), until in held:
                left_s = until - time.monotonic()
                try:
                    kept = left_s > 0 and self.store.renew(id, fence, min(self.lease_s, left_s))
                except ServiceError as error:  # it does not answer: the lease may outlast that
                    log.warning("a lease could not be renewed: %s", error.detail, extra={"session": id})
                    continue
                if not kept:
                    self.forget(id, fence)
