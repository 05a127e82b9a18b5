"""The common clock while steps come: `clock`'s definition, up to a watermark that moves on.

Steps wait until the watermark is past their tick; then the tick is complete and goes out. A step whose tick has gone
out is late: it is put on the next tick that has not, and counted. As long as nothing is late, what went out in pieces
is what `clock.align` makes of the whole, under any cuts, with one exception: that a modality is one row, which holds,
only its end tells, so a stream is told in advance (`hold`).

Memory is bounded by the ticks between the watermark and the latest step, and by `limits.max_steps` for text, whose
tokens run ahead.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, TooLarge
from service.features.clock import TICK_TOLERANCE
from service.features.limits import MediaLimits
from service.features.types import Clip

Row = NDArray[np.float32]
Sums = dict[int, tuple[NDArray[np.float64], int]]


@dataclass
class ClockState:
    """All that a clock holds between two steps.

    frontier  the first tick that has not gone out
    sums      {modality: {tick: (sum of its rows, how many)}} of audio and video
    text      [(seconds, order of arrival, row)], a heap
    held      {modality: (tick, row)} of the rows that hold
    late      {modality: steps that came after their tick had gone out}
    arrived   {modality: steps so far}
    """

    frontier: int = 0
    sums: dict[str, Sums] = field(default_factory=dict)
    text: list[tuple[float, int, Row]] = field(default_factory=list)
    held: dict[str, tuple[int, Row]] = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)
    arrived: dict[str, int] = field(default_factory=dict)


class LiveClock:
    """A clock of kind `ticks`. order: the model's modalities, the rows of `present`."""

    def __init__(self, hz: float, order: Sequence[str], limits: MediaLimits, state: ClockState | None = None) -> None:
        self.hz, self.order, self.limits = hz, tuple(order), limits
        self.state = state or ClockState()

    def check(self, name: str, rows: int, hold: bool) -> None:
        """Refuse what `add` cannot take. Raises InvalidInput, TooLarge at (name,)."""
        state = self.state
        if name in state.held:
            raise InvalidInput.at((name,), "its one step holds to the end; no more can come")
        if hold and (rows != 1 or name in state.arrived):
            raise InvalidInput.at((name,), "only a modality's one and only step can hold")
        if name == "text" and len(state.text) + rows > self.limits.max_steps:
            raise TooLarge.at((name,), f"{len(state.text) + rows} tokens would wait for their ticks to come")

    def add(self, name: str, values: NDArray[np.float32], times: NDArray[np.float64], *, hold: bool = False) -> None:
        """Take steps of a modality, [n, dim] at [n] seconds, which `check` has passed."""
        state = self.state
        ticks = np.floor(times * self.hz + TICK_TOLERANCE).astype(np.int64)
        if late := int((ticks < state.frontier).sum()):
            state.late[name] = state.late.get(name, 0) + late
        if hold:
            state.held[name] = (max(int(ticks[0]), state.frontier), values[0].copy())
        elif name == "text":
            order = state.arrived.get(name, 0)
            for time, row in zip(times.tolist(), values, strict=True):
                heapq.heappush(state.text, (time, order, row.copy()))
                order += 1
        else:
            self._add_up(state.sums.setdefault(name, {}), np.maximum(ticks, state.frontier), values, times)
        state.arrived[name] = state.arrived.get(name, 0) + len(values)

    def advance(self, watermark_s: float) -> Clip | None:
        """What goes out when no step before `watermark_s` is waited for any longer; None where there is nothing."""
        limit = int(np.floor(watermark_s * self.hz + TICK_TOLERANCE))
        return self._take(limit) if limit > self.state.frontier else None

    def flush(self) -> Clip | None:
        """Everything that waits, whenever its time."""
        return self._take(None)

    @staticmethod
    def _add_up(sums: Sums, ticks: NDArray[np.int64], values: Row, times: NDArray[np.float64]) -> None:
        """Sums in fp64, as the clock's means are taken, in the order of time."""
        by_time = np.argsort(times, kind="stable")
        ticks, values = ticks[by_time], values[by_time].astype(np.float64)
        starts = np.flatnonzero(np.diff(ticks, prepend=-1))
        for tick, rows in zip(ticks[starts].tolist(), np.split(values, starts[1:]), strict=True):
            total, count = sums.get(tick, (np.zeros(values.shape[1]), 0))
            for row in rows:
                total = total + row
            sums[tick] = (total, count + len(rows))

    def _take(self, limit: int | None) -> Clip | None:
        """Remove what lies before tick `limit` and join it."""
        state = self.state
        placed: dict[str, dict[int, Row]] = {"text": self._place_text(limit)}
        for name, sums in state.sums.items():
            ready = [tick for tick in sums if limit is None or tick < limit]
            means = {tick: sums.pop(tick) for tick in ready}
            placed[name] = {tick: (total / count).astype(np.float32) for tick, (total, count) in means.items()}
        for name, (tick, row) in state.held.items():
            if tick >= state.frontier and (limit is None or tick < limit):
                placed[name] = {tick: row}
        ticks = sorted(set().union(*placed.values()))
        state.frontier = max(state.frontier, limit if limit is not None else ticks[-1] + 1 if ticks else 0)
        return self._join(ticks, placed) if ticks else None

    def _place_text(self, limit: int | None) -> dict[int, Row]:
        """One token a tick, in the order of time; a token whose tick is taken moves on to the next free one."""
        state = self.state
        placed: dict[int, Row] = {}
        free = state.frontier
        while state.text:
            tick = max(free, int(np.floor(state.text[0][0] * self.hz + TICK_TOLERANCE)))
            if limit is not None and tick >= limit:
                break
            placed[tick] = heapq.heappop(state.text)[2]
            free = tick + 1
        return placed

    def _join(self, ticks: list[int], placed: Mapping[str, Mapping[int, Row]]) -> Clip:
        at = {tick: index for index, tick in enumerate(ticks)}
        present = np.zeros((len(self.order), len(ticks)), bool)
        values: dict[str, Row] = {}
        for name, rows in placed.items():
            if rows:
                where = [at[tick] for tick in rows]
                values[name] = np.zeros((len(ticks), len(next(iter(rows.values())))), np.float32)
                values[name][where] = list(rows.values())
                present[self.order.index(name), where] = True
        for name, (since, row) in self.state.held.items():
            first = int(np.searchsorted(ticks, since))
            if first < len(ticks):
                values[name] = np.zeros((len(ticks), len(row)), np.float32)
                values[name][first:] = row
                present[self.order.index(name), first:] = True
        return Clip(values, present, np.array(ticks) / self.hz)


class LiveIndex:
    """A clock of kind `aligned`: steps are indices, every frame brings as many of each modality."""

    def __init__(self, order: Sequence[str], steps: int = 0, names: Sequence[str] = ()) -> None:
        self.order, self.steps, self.names = tuple(order), steps, tuple(names)

    def join(self, steps: Mapping[str, Row]) -> Clip:
        """A frame's steps. Raises InvalidInput where it has others than the first frame, or unequally many."""
        names = tuple(name for name in self.order if name in steps)
        if self.names and names != self.names:
            raise InvalidInput.at("frame", f"every frame must bring {', '.join(self.names)}, this has {list(names)}")
        lengths = {name: len(rows) for name, rows in steps.items()}
        if len(set(lengths.values())) > 1:
            raise InvalidInput.at("frame", f"this model's modalities must have equally many steps, got {lengths}")
        self.names, n = names, next(iter(lengths.values()))
        present = np.array([[name in steps] * n for name in self.order], bool).reshape(len(self.order), n)
        times = np.arange(self.steps, self.steps + n, dtype=np.float64)
        self.steps += n
        return Clip({name: np.ascontiguousarray(rows, np.float32) for name, rows in steps.items()}, present, times)
