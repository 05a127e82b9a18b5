"""How much work may be inside at a time: counted before anything expensive is done for it."""

from __future__ import annotations

import threading

from service.errors import Overloaded

RETRY_AFTER_S = 1.0


class Admission:
    """A counter of sequences with an upper limit, shared by threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._inside = 0
        self._lock = threading.Lock()

    @property
    def inside(self) -> int:
        """Sequences admitted and not yet done."""
        return self._inside

    def enter(self, sequences: int) -> None:
        """Admit, or raise Overloaded with the time to come back after."""
        with self._lock:
            if self._inside + sequences > self.limit:
                raise Overloaded(
                    f"{self._inside} sequences are in work of at most {self.limit}; try again later",
                    retry_after_s=RETRY_AFTER_S,
                )
            self._inside += sequences

    def leave(self, sequences: int) -> None:
        """Give back what `enter` took."""
        with self._lock:
            self._inside -= sequences
            assert self._inside >= 0, "left twice"
