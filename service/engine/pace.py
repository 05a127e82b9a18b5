"""How soon what is inside will be done, judged by how answers left lately: what a newcomer would wait for."""

from __future__ import annotations

import threading
import time

WEIGHT = 1 / 16  # of the latest interval in their mean
SHARE = 0.5  # of the time that a request has left, which may pass before its turn


class Pace:
    """The requests of one model that are inside, and the time between two answers while any are. For any thread.

    By Little's law a newcomer finds `inside` times the interval ahead of it, whether requests wait for each other in
    a queue or share the machine, and whatever a batch gains: all of that shows in the interval.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._latest_s = 0.0  # of the last answer, or of the first request that came after nothing
        self._interval_s: float | None = None

    def enter(self) -> None:
        """A request came in."""
        with self._lock:
            if self._inside == 0:
                self._latest_s = time.monotonic()
            self._inside += 1

    def leave(self, answered: bool) -> None:
        """It left. What was cancelled or failed says nothing of the pace."""
        now = time.monotonic()
        with self._lock:
            self._inside -= 1
            if answered:
                interval_s, self._latest_s = now - self._latest_s, now
                if self._interval_s is None:
                    self._interval_s = interval_s
                else:
                    self._interval_s += WEIGHT * (interval_s - self._interval_s)

    def wait_s(self) -> float:
        """Seconds until all that are inside are likely to be done; 0 where nothing is known yet."""
        return self._inside * (self._interval_s or 0.0)

    def allows(self, deadline: float | None) -> bool:
        """Whether a request that must be answered by this time.monotonic() second is worth starting."""
        if self._inside == 0 or deadline is None:
            return True
        return self.wait_s() <= SHARE * (deadline - time.monotonic())
