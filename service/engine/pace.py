"""How soon what is inside will be done, judged by how answers left lately: what a newcomer would wait for."""

from __future__ import annotations

import threading
import time
from collections import Counter

WEIGHT = 1 / 16  # of the latest interval in their mean
SHARE = 0.4  # of the time that a request has left, which may pass before its turn


class Pace:
    """The requests of one model that are inside, and the time between two answers while any are. For any thread.

    By Little's law a newcomer finds `inside` times the interval ahead of it, whether requests wait for each other in
    a queue or share the machine, and whatever a batch gains: all of that shows in the interval.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._of: Counter[str] = Counter()  # by API key
        self._latest_s = 0.0  # of the last answer, or of the first request that came after nothing
        self._interval_s: float | None = None

    def enter(self, key: str = "") -> None:
        """A request of an API key came in."""
        with self._lock:
            if self._inside == 0:
                self._latest_s = time.monotonic()
            self._inside += 1
            self._of[key] += 1

    def leave(self, answered: bool, key: str = "") -> None:
        """It left. What was cancelled or failed says nothing of the pace."""
        now = time.monotonic()
        with self._lock:
            self._inside -= 1
            self._of[key] -= 1
            if not self._of[key]:
                del self._of[key]
            if answered:
                interval_s, self._latest_s = now - self._latest_s, now
                if self._interval_s is None:
                    self._interval_s = interval_s
                else:
                    self._interval_s += WEIGHT * (interval_s - self._interval_s)

    def wait_s(self, key: str = "", coming: int = 0) -> float:
        """Seconds until a newcomer's turn has likely come and all before it are done; 0 where nothing is known yet.

        Keys take turns: it finds no more ahead of it than its own key's requests, and as many of each other key.
        coming: so many more are on their way in, of whatever key.
        """
        with self._lock:
            own, keys = self._of.get(key, 0), len(self._of)
            ahead = min(self._inside, (own + 1) * (keys if own else keys + 1))
        return (ahead + coming) * (self._interval_s or 0.0)

    def allows(self, deadline: float | None, key: str = "", coming: int = 0) -> bool:
        """Whether a key's request that must be answered by this time.monotonic() second is worth starting."""
        if self._inside + coming == 0 or deadline is None:
            return True
        return self.wait_s(key, coming) <= SHARE * (deadline - time.monotonic())
