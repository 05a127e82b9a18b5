"""Timing rivals side by side on a machine that others use too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Elapsed:
    """What a rival in another process says that its round took; the way there and back does not count against it."""

    seconds: float


@dataclass(frozen=True)
class Timing:
    """Seconds of every round by the clock, and of the processor for this process: what others leave untouched.

    cpu_seconds is None of a rival in another process.
    """

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...] | None

    @property
    def median(self) -> float:
        """The middle round: what a figure states."""
        return statistics.median(self.seconds)

    @property
    def cpu(self) -> float | None:
        """The middle round's time of the processor; close to `median` where the process has a core to itself."""
        return self.cpu_seconds and statistics.median(self.cpu_seconds)

    @property
    def iqr(self) -> float:
        """Distance between the quartiles: its noise. 0 of a single round."""
        if len(self.seconds) == 1:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return high - low

    def per(self, count: int) -> Timing:
        """Seconds of one, where a round does `count` of them."""
        cpu = self.cpu_seconds and tuple(s / count for s in self.cpu_seconds)
        return Timing(tuple(s / count for s in self.seconds), cpu)


def interleaved(
    rivals: Mapping[str, Callable[[], object]], *, budget_s: float, least: int, most: int = 50
) -> dict[str, Timing]:
    """Time each rival once a round, A B A B …, so that whatever else the machine does falls on all of them alike.

    Each must have run before, or the first round pays for what is only done once. Rounds go on for `budget_s`
    seconds, but are at least `least` and at most `most`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in rivals}
    stop = time.perf_counter() + budget_s
    for count in range(most):
        if count >= least and time.perf_counter() >= stop:
            break
        for name, run in rivals.items():
            begun, cpu_begun = time.perf_counter(), time.process_time()
            told = run()
            if isinstance(told, Elapsed):
                seconds[name].append(told.seconds)
            else:
                seconds[name].append(time.perf_counter() - begun)
                cpu_seconds[name].append(time.process_time() - cpu_begun)
    return {name: Timing(tuple(seconds[name]), tuple(cpu_seconds[name]) or None) for name in rivals}
