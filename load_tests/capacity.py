"""The highest rate that keeps the objectives: of each kind of work alone, then of all of them mixed.

A rate keeps its objective where 99 of 100 answers (or measurements of a stream) come within it. It is looked for
between a tenth and the whole of what clients get that ask again as soon as they are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_tests.ledger import Call, read
from load_tests.open_loop import Plan, in_a_process
from load_tests.report import milliseconds
from load_tests.service import Service
from load_tests.streams import FRAMES_HZ

SHARE = 0.99
STEPS = 20  # that the whole is divided in
IN_FLIGHT = 8
OBJECTIVES_S = {"text": 0.25, "features": 0.1, "words": 0.5, "generation": 2.0, "streams": 0.1}
MIXED = ("features", "words", "streams")


@dataclass(frozen=True)
class Probe:
    """What was seen at one rate. kept: of the objective."""

    rate: float
    kept: bool
    within: float
    p50_ms: float | None
    p99_ms: float | None
    first_p99_ms: float | None
    per_s: float
    tokens_per_s: float


class Capacity:
    """Probes a service, `seconds` each."""

    def __init__(self, service: Service, folder: Path, seconds: float) -> None:
        self.service, self.folder, self.seconds = service, folder, seconds
        self.calls: list[Call] = []
        self._plans = 0

    def measure(self) -> dict[str, dict[str, Any]]:
        """Every kind of work, then the mixture: rows by work."""
        rows = {work: self._row(work, *self._alone(work)) for work in OBJECTIVES_S}
        alone = {work: rows[work]["rate"] for work in MIXED if rows[work]["rate"]}
        if alone:
            share, probes = self._search(lambda share: self._mixed({work: share * alone[work] for work in alone}))
            for work, probe in zip(alone, probes, strict=True):
                rows[f"{work}, mixed"] = self._row(work, share * alone[work], probe)
        return rows

    def _alone(self, work: str) -> tuple[float, Probe]:
        most = self._closed(work)
        share, (probe,) = self._search(lambda share: [self._probe(work, share * most)])
        return share * most, probe

    def _search(self, probe: Callable[[float], Sequence[Probe]]) -> tuple[float, Sequence[Probe]]:
        """The largest share at which all objectives are kept, and what was seen there."""
        best: tuple[float, Sequence[Probe]] | None = None
        low, high = 0, STEPS  # low was kept, or is nothing at all; above high nothing is tried
        while low < high:
            middle = (low + high + 1) // 2
            seen = probe(middle / STEPS)
            if all(one.kept for one in seen):
                low, best = middle, (middle / STEPS, seen)
            else:
                high = middle - 1
        return best or (0.0, seen)

    def _closed(self, work: str) -> float:
        """What eight clients get, a second; of streams, how many sockets those frames are."""
        if work == "streams":
            calls, took = self._run(work, streams=IN_FLIGHT, seconds=self.seconds, in_flight=1)
            return sum(len(call.gaps) for call in calls) / took / FRAMES_HZ
        calls, took = self._run(work, seconds=self.seconds, in_flight=IN_FLIGHT)
        return sum(call.good for call in calls) / took

    def _mixed(self, rates: dict[str, float]) -> list[Probe]:
        with ThreadPoolExecutor(len(rates)) as pool:
            return list(pool.map(self._probe, rates, rates.values()))

    def _probe(self, work: str, rate: float) -> Probe:
        if work == "streams":
            calls, took = self._run(work, streams=max(1, round(rate)), seconds=self.seconds)
            times = [gap for call in calls for gap in call.gaps]
            failed = sum(call.lost for call in calls)
        else:
            calls, took = self._run(work, rate=rate, seconds=self.seconds)
            times = [call.seconds for call in calls if call.good]
            failed = len(calls) - len(times)
        within = sum(seconds <= OBJECTIVES_S[work] for seconds in times) / max(1, len(times) + failed)
        return Probe(
            rate=rate,
            kept=within >= SHARE,
            within=within,
            p50_ms=milliseconds(times, 0.5),
            p99_ms=milliseconds(times, 0.99),
            first_p99_ms=milliseconds((call.first_s for call in calls if call.first_s is not None), 0.99),
            per_s=len(times) / took,
            tokens_per_s=sum(call.tokens for call in calls) / took,
        )

    def _run(self, work: str, **plan: Any) -> tuple[list[Call], float]:
        self._plans += 1
        ledger = self.folder / f"capacity-{self._plans}.jsonl"
        took = in_a_process(Plan(self.service.url, str(ledger), (work,), seed=self._plans, **plan))["seconds"]
        calls = read(ledger)
        self.calls += calls
        return calls, took

    def _row(self, work: str, rate: float, probe: Probe) -> dict[str, Any]:
        streams = work == "streams"
        return {
            "rate": round(rate, 1),
            "unit": "sockets" if streams else "requests/s",
            "objective_ms": round(1000 * OBJECTIVES_S[work]),
            "within": round(probe.within, 4) if probe.kept else 0.0,
            "p50_ms": probe.p50_ms,
            "p99_ms": probe.p99_ms,
            "first_token_p99_ms": probe.first_p99_ms,
            "tokens_per_s": round(probe.tokens_per_s) or None,
        }
