"""Tokens that are read into a state and nothing more: no head is evaluated, nothing is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.engine.request import NotFinite, Piece, Work
from service.engine.snapshots import Snapshot


@dataclass(frozen=True)
class Read:
    """What reading left: the state, and seconds spent waiting for a slot and then on it."""

    snapshot: Snapshot
    queue_s: float
    inference_s: float


class ReadingProgram:
    """Reads at least one token, from a state or from the initial one."""

    rows = 1

    def __init__(self, ids: Sequence[int], restore: Snapshot | None = None) -> None:
        assert ids, "there is something to read"
        self.ids, self.restore = tuple(ids), restore
        self._done = 0
        self._snapshot: Snapshot | None = None

    @property
    def finished(self) -> bool:
        """Whether all tokens have run."""
        return self._done == len(self.ids)

    @property
    def progress(self) -> str:
        """Tokens that have run."""
        return f"{self._done} of {len(self.ids)} tokens"

    def pieces(self) -> Iterator[Piece]:
        """The tokens that are left."""
        restore = self.restore if self._done == 0 else None
        fresh = self._done == 0 and restore is None
        yield Piece(0, self._done, len(self.ids), fresh, restore=restore, capture=True)

    def tokens(self, work: Work) -> Sequence[int]:
        """The ids that a work's row reads."""
        return self.ids[work.start : work.stop]

    def draw(self, work: Work) -> None:
        """Nothing is drawn."""

    def captured(self, work: Work, snapshot: Snapshot | None) -> None:
        """Keep the state at the end."""
        self._snapshot = snapshot

    def advance(self, work: Work, output: None) -> None:
        """Take note. Raises NotFinite."""
        if work.capture and self._snapshot is None:
            raise NotFinite
        self._done = work.stop

    def result(self, queue_s: float, inference_s: float) -> Read:
        """The state."""
        assert self._snapshot is not None
        return Read(self._snapshot, queue_s, inference_s)
