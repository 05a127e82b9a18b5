"""A clip of /predict as a program: one row, steps in order, the head at the last of them or at every one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.request import NotFinite, Piece, Work
from service.engine.snapshots import Snapshot
from service.features.types import Clip


@dataclass(eq=False, slots=True)
class Result:
    """What a clip's steps gave.

    outputs   [reads, outputs] float32: the head at the last step, or at every step
    snapshot  the state after the last step, where it was asked for
    """

    outputs: NDArray[np.float32]
    queue_s: float
    inference_s: float
    snapshot: Snapshot | None = None


class ClipProgram:
    """Runs a clip of at least one step.

    read_all  evaluate the head at every step, not at the last one only
    restore   the state that the clip's first step goes on from; None: the initial one
    capture   keep the state after its last step
    alone     evaluate the head at each read over that step by itself too: [reads, 2 * outputs]
    """

    rows = 1

    def __init__(
        self,
        clip: Clip,
        read_all: bool = False,
        *,
        restore: Snapshot | None = None,
        capture: bool = False,
        alone: bool = False,
    ) -> None:
        self.clip, self.read_all, self.restore, self.capture = clip, read_all, restore, capture
        self.alone = alone
        self._done = 0
        self._snapshot: Snapshot | None = None
        self._outputs: list[NDArray[np.float32]] = []

    @property
    def finished(self) -> bool:
        """Whether every step has run."""
        return self._done == self.clip.steps

    @property
    def progress(self) -> str:
        """Steps that have run."""
        return f"{self._done} of {self.clip.steps} steps"

    def pieces(self) -> Iterator[Piece]:
        """The steps that are left."""
        restore = self.restore if self._done == 0 else None
        fresh = self._done == 0 and restore is None
        yield Piece(0, self._done, self.clip.steps, fresh, restore=restore, capture=self.capture)

    def reads(self, work: Work) -> range:
        """Which of a work's steps the head is read at, counted from its first."""
        if self.read_all:
            return range(work.steps)
        return range(work.steps - 1, work.steps) if work.stop == self.clip.steps else range(0)

    def captured(self, work: Work, snapshot: Snapshot | None) -> None:
        """Keep the state at the end."""
        self._snapshot = snapshot

    def advance(self, work: Work, output: NDArray[np.float32]) -> None:
        """Keep the head's outputs [reads, outputs] of a work. Raises NotFinite."""
        # Looked for in the bytes: NumPy's `all` fetches its code for 30 microseconds once the weights have evicted it.
        if 0 in np.isfinite(output).tobytes() or (work.capture and self._snapshot is None):
            raise NotFinite
        self._outputs.append(output)
        self._done = work.stop

    def result(self, queue_s: float, inference_s: float) -> Result:
        """The outputs of all steps."""
        outputs = self._outputs[0] if len(self._outputs) == 1 else np.concatenate(self._outputs)
        return Result(outputs, queue_s, inference_s, self._snapshot)
