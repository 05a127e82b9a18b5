"""From ledgers to figures, and the checks that nothing was lost and nothing is left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from load_tests.ledger import Call, discrepancies, logged
from load_tests.service import Readings, Service, settled

SHOWN = 5  # of discrepancies
CLIENT_GONE = "499"


def quantile(values: Iterable[float], q: float) -> float | None:
    """The value that a share q of them does not exceed; None of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None


def milliseconds(values: Iterable[float], q: float) -> float | None:
    """A quantile of seconds, rounded."""
    seconds = quantile(values, q)
    return None if seconds is None else round(1000 * seconds, 2)


def by_kind(calls: Sequence[Call]) -> dict[str, dict[str, Any]]:
    """Figures of each kind of work; latencies are those of requests that were answered with a result."""
    kinds: dict[str, dict[str, Any]] = {}
    for kind in sorted({call.kind for call in calls}):
        of_kind = [call for call in calls if call.kind == kind]
        stayed = [call for call in of_kind if call.left is None]
        done = [call for call in stayed if call.answered and call.status < 300]
        gaps = [gap for call in of_kind for gap in call.gaps]
        kinds[kind] = {
            "requests": len(of_kind),
            "left": len(of_kind) - len(stayed),
            "good": sum(call.good for call in stayed),
            **{f"p{q}_ms": milliseconds((call.seconds for call in done), q / 100) for q in (50, 95, 99)},
            "first_p50_ms": milliseconds((c.first_s for c in done if c.first_s is not None), 0.5),
            "first_p99_ms": milliseconds((c.first_s for c in done if c.first_s is not None), 0.99),
            "between_p50_ms": milliseconds(gaps, 0.5),
            "between_p99_ms": milliseconds(gaps, 0.99),
        }
    return kinds


def rejections(calls: Iterable[Call]) -> dict[str, int]:
    """How many were answered with each problem."""
    return dict(Counter(call.code or str(call.status) for call in calls if call.status >= 300))


def checks(service: Service, before: Readings, calls: Sequence[Call]) -> dict[str, Any]:
    """What must be true after the load: everything answered once, and slots, sessions and memory as before.

    The service's counters are compared by route: as many requests ended as were sent. Where its log is at hand, each
    id must be in there once, with the status that its client saw.
    """
    sent = Counter(call.endpoint for call in calls if call.endpoint and call.reached)

    def apart(readings: Readings) -> list[str]:
        ended = _ended(readings) - _ended(before)
        return [f"{at}: {sent[at]} were sent and {ended[at]} ended" for at in sent if sent[at] != ended[at]]

    after = settled(service, lambda readings: not apart(readings))
    faults = apart(after)
    if service.log is not None:
        faults += discrepancies(calls, logged(service.log))
    lost = [call for call in calls if call.lost]
    errors = int(_grown(before, after, "failures_total", reason="internal"))
    return {
        "requests": len(calls),
        "answered": sum(call.answered for call in calls),
        "left": sum(call.left is not None for call in calls),
        "lost": len(lost) + len(faults),
        "rejections": rejections(calls),
        "lost_why": [f"{call.id} ({call.kind}): {call.fault or call.status}" for call in lost[:SHOWN]] + faults[:SHOWN],
        "leaked_slots": int(_grown(before, after, "state_slots", state="used")),
        "leaked_sessions": int(_grown(before, after, "sessions")),
        "leaked_requests": int(_grown(before, after, "requests_running") + _grown(before, after, "requests_waiting")),
        "leaked_streams": int(_grown(before, after, "streams")),
        "server_errors": max(errors, sum(call.status == 500 for call in calls)),
        **{f"{who}_cores": count for who, count in service.cores.items()},
        "rss_mb": [round(reading.total("memory_bytes", kind="rss") / 2**20) for reading in (before, after)],
    }


def _ended(readings: Readings) -> Counter[str]:
    counts = readings.by("request_duration_seconds_count", "endpoint")
    return Counter({endpoint: int(count) for endpoint, count in counts.items()})


def _grown(before: Readings, after: Readings, name: str, **labels: str) -> float:
    return after.total(name, **labels) - before.total(name, **labels)


def table(rows: Mapping[str, Mapping[str, Any]], first: str) -> str:
    """Rows of figures for a reader; `first` heads the column of their names."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    used = [name for name in names if any(row.get(name) is not None for row in rows.values())]
    cells = [[first, *used]]
    cells += [[title, *("" if row.get(n) is None else f"{row[n]}" for n in used)] for title, row in rows.items()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
