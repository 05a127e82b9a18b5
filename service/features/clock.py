"""The common clock: steps of modalities that run at different rates become one sequence for a model.

A clock of kind `ticks` cuts time into ticks of 1 / hz seconds; a step at t falls on tick floor(t hz). Then

- audio, video: the steps that share a tick are averaged, so that overlapping and repeated timestamps count alike;
- text: one token a tick, in time order; a token whose tick is taken moves on to the next free one;
- a modality that is one row holds: it is present from its own tick on, at every step that there is;
- a tick at which no modality has a step is not a step: silence costs nothing.

Timestamps may be in any order: steps are sorted by time, equal ones staying in the order they came in. In a whole
clip nothing is late; lateness is a matter of streams. Without timestamps, step k is at k / rate.

On a clock of kind `aligned` steps are indices: every modality has the same number, and timestamps are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, TooLarge
from service.features.limits import MediaLimits
from service.features.types import Clip, Steps

# A time this close below a tick is on it: 1.16 s * 25 Hz is 28.999999999999996 in floating point.
TICK_TOLERANCE = 1e-6

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ClockSpec:
    """A checkpoint's clock. hz: ticks a second, for kind `ticks` only."""

    kind: Literal["ticks", "aligned"]
    hz: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("ticks", "aligned"):
            raise ValueError(f"the clock's kind must be 'ticks' or 'aligned', got {self.kind!r}")
        if (self.kind == "ticks") != (self.hz is not None):
            raise ValueError(f"the clock's hz belongs to kind 'ticks', got kind {self.kind!r} and hz {self.hz}")
        if self.hz is not None and not 0 < self.hz < float("inf"):
            raise ValueError(f"the clock's hz must be a positive number, got {self.hz}")


def align(
    steps: Mapping[str, Steps],
    clock: ClockSpec,
    order: Sequence[str],
    rates: Mapping[str, float],
    limits: MediaLimits,
) -> Clip:
    """Join modalities on one clock, as this module's docstring defines it.

    steps  at least one modality, each of at least one row
    order  the model's modalities: the rows of `present`, and the keys of `values` that may occur
    rates  steps a second of each modality that has no timestamps (unused on an aligned clock)
    -> Clip: values only of the modalities in `steps`, times in seconds (aligned: indices).
    Raises InvalidInput at features.M or timestamps.M where lengths or timestamps are wrong, TooLarge where
    there are more steps than limits.max_steps or a timestamp is over limits.max_media_seconds.
    """
    unknown = [name for name in steps if name not in order]
    if unknown or not steps:
        raise ValueError(f"steps must be of some of {list(order)}, got {list(steps)}")
    for name, given in steps.items():
        check_steps(name, given, clock, rates.get(name, 1.0), limits)
    named = {name: steps[name] for name in order if name in steps}
    return _aligned(named, order) if clock.kind == "aligned" else _ticked(named, clock, order, rates, limits)


def check_steps(name: str, steps: Steps, clock: ClockSpec, rate_hz: float, limits: MediaLimits) -> None:
    """Refuse what `align` cannot place: cheap, so that it may come before anything expensive. Errors as in align."""
    rows = len(steps.values)
    if rows == 0:
        raise InvalidInput.at(("features", name), "no steps came; leave the modality out instead")
    # More rows than this cannot be within max_steps ticks at the modality's own rate.
    most = limits.max_steps
    if clock.hz is not None:
        most = int(most * max(1.0, rate_hz / clock.hz))
    if rows > most:
        raise TooLarge.at(("features", name), f"{rows} steps came; at most {most} are allowed")
    if steps.times is None:
        return
    at = ("timestamps", name)
    if clock.kind == "aligned":
        raise InvalidInput.at(at, "this model's clock is aligned: steps are indices and take no timestamps")
    if steps.times.shape != (rows,):
        raise InvalidInput.at(at, f"{list(steps.times.shape)} timestamps came for {rows} steps; one a step is expected")
    wrong = np.flatnonzero(~(np.isfinite(steps.times) & (steps.times >= 0)))
    if len(wrong):
        first = int(wrong[0])
        raise InvalidInput.at(at, f"timestamp {first} is {steps.times[first]}; seconds from 0 on are expected")
    latest = float(steps.times.max())
    if latest > limits.max_media_seconds:
        raise TooLarge.at(at, f"a timestamp is {latest:g} s; at most {limits.max_media_seconds:g} s are allowed")


def _aligned(steps: Mapping[str, Steps], order: Sequence[str]) -> Clip:
    lengths = {name: len(given.values) for name, given in steps.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise InvalidInput(
            f"features: this model's modalities must have equally many steps; {listed}",
            errors=InvalidInput.at("features", f"unequal numbers of steps: {listed}").errors,
        )
    n = next(iter(lengths.values()))
    present = np.array([[name in steps] * n for name in order], bool).reshape(len(order), n)
    values = {name: np.ascontiguousarray(given.values, np.float32) for name, given in steps.items()}
    return Clip(values, present, np.arange(n, dtype=np.float64))


def _ticked(
    steps: Mapping[str, Steps],
    clock: ClockSpec,
    order: Sequence[str],
    rates: Mapping[str, float],
    limits: MediaLimits,
) -> Clip:
    assert clock.hz is not None
    placed: dict[str, tuple[Ints, NDArray[np.float32]]] = {}
    for name, given in steps.items():
        times = np.arange(len(given.values)) / rates[name] if given.times is None else given.times
        by_time = np.argsort(times, kind="stable")
        at_ticks = np.floor(times[by_time] * clock.hz + TICK_TOLERANCE).astype(np.int64)
        place = _one_a_tick if name == "text" else _mean_a_tick
        placed[name] = place(at_ticks, given.values[by_time])
    ticks = np.unique(np.concatenate([at for at, _ in placed.values()]))
    n = len(ticks)
    if n > limits.max_steps:
        raise TooLarge.at("features", f"{n} steps on the model's clock; at most {limits.max_steps} are allowed")
    values = {}
    present = np.zeros((len(order), n), bool)
    for name, (at, rows) in placed.items():
        where = np.searchsorted(ticks, at)
        row = present[order.index(name)]
        values[name] = np.zeros((n, rows.shape[1]), np.float32)
        if len(steps[name].values) == 1:
            where = np.arange(where[0], n)  # a single step holds
        row[where] = True
        values[name][where] = rows
    return Clip(values, present, ticks / clock.hz)


def _one_a_tick(ticks: Ints, values: NDArray[np.float32]) -> tuple[Ints, NDArray[np.float32]]:
    """Each row on its tick, or on the next free one: a_i = max(tick_i, a_{i-1} + 1), solved for all i at once.

    ticks [n] sorted.
    """
    index = np.arange(len(ticks))
    return np.maximum.accumulate(ticks - index) + index, values


def _mean_a_tick(ticks: Ints, values: NDArray[np.float32]) -> tuple[Ints, NDArray[np.float32]]:
    """The mean of the rows on each tick, summed in fp64 so that their order hardly shows. ticks [n] sorted."""
    at, starts, counts = np.unique(ticks, return_index=True, return_counts=True)
    sums = np.add.reduceat(values, starts, axis=0, dtype=np.float64)
    return at, (sums / counts[:, None]).astype(np.float32)
