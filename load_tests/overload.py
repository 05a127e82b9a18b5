"""Ten times more than the service can do: it goes on with what it can, soon, and refuses the rest at once.

capacity   answers a second, with some clients that each ask again as soon as they are answered
half       half of that, at random times: its p99 is what an answer may take, twice over
overload   ten times the capacity, each request with twice that p99 as its deadline

Capacity and overload take turns: a machine that is faster for some seconds would else show as the one or the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_tests.ledger import Call, read
from load_tests.open_loop import Plan, in_a_process
from load_tests.report import milliseconds, quantile, rejections
from load_tests.service import Service

TIMES = 10
IN_FLIGHT = 8


ROUNDS = 2
_NUMBERS = itertools.count()  # of ledgers, which are written to at their ends


@dataclass(frozen=True)
class Lengths:
    """Seconds of each phase, of all its turns together."""

    capacity: float
    half: float
    overload: float


def overload(service: Service, folder: Path, work: str, lengths: Lengths) -> tuple[dict[str, Any], list[Call]]:
    """Run the three phases on one kind of work -> figures, and every request."""
    phases = _Phases(service, folder, work)

    def at_capacity() -> tuple[list[Call], dict[str, Any]]:
        return phases.run("capacity", seconds=lengths.capacity / ROUNDS, in_flight=IN_FLIGHT)

    turns = [at_capacity()]
    half, _ = phases.run("half", seconds=lengths.half, rate=_rate(turns) / 2)
    p99 = quantile((call.seconds for call in half if call.good), 0.99) or 0.0
    offered = {"rate": TIMES * _rate(turns), "deadline_ms": max(1, round(2000 * p99))}
    overs = []
    for turn in range(ROUNDS):
        if turn:
            turns.append(at_capacity())
        overs.append(phases.run("over", seconds=lengths.overload / ROUNDS, seed=turn, **offered))
    capacity, goodput = _rate(turns), _rate(overs)  # the last answers of a turn come after its last request
    calls = [call for came, _ in overs for call in came]
    refused = [call for call in calls if call.refused]
    admitted = [call for call in calls if not call.refused]
    admitted_p99 = quantile((call.seconds for call in admitted), 0.99) or 0.0
    figures = {
        "capacity_per_s": round(capacity, 1),
        "offered_per_s": round(len(calls) / lengths.overload, 1),
        "goodput_per_s": round(goodput, 1),
        "goodput_ratio": round(goodput / capacity, 3),
        "half_p99_ms": round(1000 * p99, 2),
        "admitted_p99_ms": round(1000 * admitted_p99, 2),
        "admitted_p99_ratio": round(admitted_p99 / p99, 3),
        "refusal_p50_ms": milliseconds((call.seconds for call in refused), 0.5),
        "refusal_p99_ms": milliseconds((call.seconds for call in refused), 0.99),
        "generator_late_p99_ms": round(max(result["late_p99_ms"] for _, result in overs), 2),
        "answers": rejections(calls) | {"good": sum(call.good for call in calls)},
    }
    return figures, [*(call for came, _ in turns for call in came), *half, *calls]


def _rate(turns: Sequence[tuple[list[Call], dict[str, Any]]]) -> float:
    """Results in time a second."""
    return sum(call.good for calls, _ in turns for call in calls) / sum(result["seconds"] for _, result in turns)


@dataclass(frozen=True)
class _Phases:
    service: Service
    folder: Path
    work: str

    def run(self, name: str, **plan: Any) -> tuple[list[Call], dict[str, Any]]:
        ledger = self.folder / f"{self.work}-{name}-{next(_NUMBERS)}.jsonl"
        result = in_a_process(Plan(self.service.url, str(ledger), (self.work,), **plan))
        return read(ledger), result
