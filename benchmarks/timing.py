"""Timing rivals side by side on a machine that others use too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

TURN_S, TURN_RUNS = 0.025, 16  # of a turn's timed runs: when there are enough of them, and how many are enough
LONG_S = 0.5  # a run that warms itself up


@dataclass(frozen=True)
class Elapsed:
    """What a rival in another process says that its run took; the way there and back does not count against it."""

    seconds: float


@dataclass(frozen=True)
class Timing:
    """Seconds of a run, of every turn by the clock, and of the processor for this process: what others leave untouched.

    cpu_seconds is None of a rival in another process. cold_seconds are the clock's of the runs that came first in a
    turn, after another rival's data had gone through the caches.
    """

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...] | None
    cold_seconds: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """The middle turn: what a figure states."""
        return statistics.median(self.seconds)

    @property
    def cpu(self) -> float | None:
        """The middle turn's time of the processor; close to `median` where the process has a core to itself."""
        return self.cpu_seconds and statistics.median(self.cpu_seconds)

    @property
    def cold(self) -> float | None:
        """The middle one of the first runs."""
        return statistics.median(self.cold_seconds) if self.cold_seconds else None

    @property
    def iqr(self) -> float:
        """Distance between the quartiles: its noise. 0 of a single turn."""
        if len(self.seconds) == 1:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return high - low

    def per(self, count: int) -> Timing:
        """Seconds of one, where a run does `count` of them."""
        cpu = self.cpu_seconds and tuple(s / count for s in self.cpu_seconds)
        return Timing(tuple(s / count for s in self.seconds), cpu, tuple(s / count for s in self.cold_seconds))


@dataclass
class _Side:
    """One rival, and what its turns gave."""

    run: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    cold_seconds: list[float] = field(default_factory=list)

    def turn(self) -> None:
        """A first run, and then, where that was short, others that count in its place."""
        first, cpu = self._timed()
        self.cold_seconds.append(first)
        runs = [] if first < LONG_S else [(first, cpu)]
        while first < LONG_S and len(runs) < TURN_RUNS and sum(seconds for seconds, _ in runs) < TURN_S:
            runs.append(self._timed())
        self.seconds.append(statistics.fmean(seconds for seconds, _ in runs))
        if told := [cpu for _, cpu in runs if cpu is not None]:
            self.cpu_seconds.append(statistics.fmean(told))

    def _timed(self) -> tuple[float, float | None]:
        begun, cpu_begun = time.perf_counter(), time.process_time()
        told = self.run()
        if isinstance(told, Elapsed):
            return told.seconds, None
        return time.perf_counter() - begun, time.process_time() - cpu_begun

    def timing(self) -> Timing:
        return Timing(tuple(self.seconds), tuple(self.cpu_seconds) or None, tuple(self.cold_seconds))


def interleaved(
    rivals: Mapping[str, Callable[[], object]], *, budget_s: float, least: int, most: int = 50
) -> dict[str, Timing]:
    """Give each rival a turn a round, A B A B …, so that whatever else the machine does falls on all of them alike.

    A turn is of the same kind for all. What serves does one run after another, and not after a rival whose data went
    through the caches: a turn begins with a run that does not count, goes on with runs until they have taken `TURN_S`
    or are `TURN_RUNS`, and gives their mean. A first run of `LONG_S` or more is its own warming up, and the turn.

    Each must have run before, or the first round pays for what is only done once. Rounds go on for `budget_s`
    seconds, but are at least `least` and at most `most`.
    """
    sides = {name: _Side(run) for name, run in rivals.items()}
    stop = time.perf_counter() + budget_s
    for count in range(most):
        if count >= least and time.perf_counter() >= stop:
            break
        for side in sides.values():
            side.turn()
    return {name: side.timing() for name, side in sides.items()}
