"""The threads that decode and extract, so that neither the event loop nor the engine waits for it.

Threads, not processes: openSMILE, FFmpeg and PyTorch let go of the interpreter while they work. On two busy
cores, two threads took as long as two processes, to within noise.

A native library that crashes takes the process with it; keeping strangers' files in a process of their own is a
matter of deployment (a container that is restarted), not of this pool.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from service.errors import Draining, Overloaded
from service.niceness import WORKERS, give_way

P = ParamSpec("P")
T = TypeVar("T")


class FeatureWorkers:
    """A pool that refuses, at once, what it has no room for."""

    def __init__(self, threads: int, max_waiting: int) -> None:
        """threads work at a time; up to max_waiting more calls wait."""
        if threads < 1 or max_waiting < 0:
            raise ValueError(f"threads must be at least 1 and max_waiting at least 0, got {threads} and {max_waiting}")
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix="features", initializer=give_way, initargs=(WORKERS,)
        )
        self._room = threading.Semaphore(threads + max_waiting)
        self._inside, self._lock = 0, threading.Lock()

    @property
    def inside(self) -> int:
        """Calls that run or wait."""
        return self._inside

    def submit(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run fn in a worker. Cancelling the future before it starts gives its place back.

        Raises Overloaded when all threads are busy and the queue is full, Draining after close.
        """
        if not self._room.acquire(blocking=False):
            raise Overloaded("the feature workers are all busy and their queue is full", retry_after_s=1.0)
        try:
            future = self._pool.submit(fn, *args, **kwargs)
        except RuntimeError as error:
            self._room.release()
            raise Draining("the feature workers are closed") from error
        self._count(1)
        future.add_done_callback(self._left)
        return future

    def _left(self, _: Future[T]) -> None:
        self._count(-1)
        self._room.release()

    def _count(self, more: int) -> None:
        with self._lock:
            self._inside += more

    def close(self) -> None:
        """Refuse new calls, cancel those that wait, and return when those that run are done."""
        self._pool.shutdown(wait=True, cancel_futures=True)
