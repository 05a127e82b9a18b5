"""What the store keeps, for the metrics: asked of it when they are read, in a thread that holds up nobody else.

It is one number of the whole store, and every replica tells the same: each of them writes there, and sessions outlive
replicas, so that what each had made itself would add up to nothing that is true. Where the store does not answer there
is no number, rather than one of before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from service.errors import ServiceError
from service.metrics import Metrics
from service.sessions.session import Store

TIER = "redis"


class Census:
    """Sets the gauges of the tier `redis`, of the models served here. May be used from any thread."""

    def __init__(self, store: Store, models: Iterable[str], metrics: Metrics) -> None:
        self.store, self.models, self.metrics = store, tuple(models), metrics
        self._lock = threading.Lock()
        self._asked: Future[None] = Future()
        self._asked.set_result(None)
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="census")

    def ask(self) -> Future[None]:
        """Begin to count -> done when the gauges are of now, or without samples.

        Whoever asks meanwhile waits for the same count: askers of a store that hangs do not pile up.
        """
        with self._lock:
            if self._asked.done() and not self._closed:
                self._asked = self._thread.submit(self._count)
            return self._asked

    def forget(self) -> None:
        """Leave the gauges without samples."""
        for model in self.models:
            for gauge in (self.metrics.sessions, self.metrics.snapshot_bytes):
                gauge.remove(model, TIER)

    def close(self) -> None:
        """Count no more."""
        with self._lock:
            self._closed = True
        self._thread.shutdown()
        self.forget()

    def _count(self) -> None:
        try:
            kept = {model: self.store.kept(model) for model in self.models}
        except ServiceError:
            self.forget()
            return
        for model, (count, total_bytes) in kept.items():
            self.metrics.sessions.labels(model, TIER).set(count)
            self.metrics.snapshot_bytes.labels(model, TIER).set(total_bytes)
