"""Figures from ledgers, and the checks after a load, on a service whose metrics are made up."""

from __future__ import annotations

from typing import Any

import pytest

from load_tests.ledger import Call
from load_tests.report import by_kind, checks, quantile, rejections, table
from load_tests.service import Readings, Service

Sample = tuple[str, dict[str, str], float]


class Made(Service):
    """What its metrics say after the load."""

    def __init__(self, *samples: Sample) -> None:
        super().__init__("http://nowhere")
        object.__setattr__(self, "samples", list(samples))

    def scrape(self) -> Readings:
        return Readings(self.samples)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience ends at the second look."""
    monkeypatch.setattr("load_tests.service.time.monotonic", iter(range(0, 10_000, 15)).__next__)


BEFORE = Readings([("serpentine_sessions", {"tier": "host"}, 2.0)])


def call(status: int = 200, **fields: Any) -> Call:
    return Call("text clip", "/predict", status=status, **{"seconds": 0.1, **fields})


def ended(count: float) -> Sample:
    labels = {"endpoint": "/predict", "status": "200"}
    return ("serpentine_request_duration_seconds_count", labels, count)


def test_quantiles_are_values_that_came() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(range(100), 0.99) == 99


def test_latencies_are_those_of_results() -> None:
    calls = [call(seconds=0.1), call(503, seconds=9.0), call(0, seconds=9.0, left="the answer"), call(seconds=0.3)]
    row = by_kind(calls)["text clip"]
    assert (row["requests"], row["left"], row["good"]) == (4, 1, 2)
    assert row["p99_ms"] == 300.0
    assert "300.0" in table({"text clip": row}, "work")


def test_rejections_are_counted_by_reason() -> None:
    calls = [call(), call(503, code="overloaded"), call(503, code="overloaded"), call(429, code="rate_limited")]
    assert rejections(calls) == {"overloaded": 2, "rate_limited": 1}


def test_a_clean_run_has_nothing_to_tell() -> None:
    service = Made(ended(2), ("serpentine_sessions", {"tier": "host"}, 2.0))
    result = checks(service, BEFORE, [call(), call(0, left="the body")])
    assert (result["requests"], result["answered"], result["left"]) == (2, 1, 1)
    assert [result[name] for name in result if name.startswith(("lost", "leaked", "server"))] == [0, [], 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("sample", "name"),
    [
        (("serpentine_sessions", {"tier": "host"}, 1.0), "leaked_sessions"),
        (("serpentine_failures_total", {"reason": "internal"}, 1.0), "server_errors"),
        (ended(1), "lost"),
    ],
)
def test_what_is_left_behind_is_found(sample: Sample, name: str) -> None:
    service = Made(ended(1), ("serpentine_sessions", {"tier": "host"}, 2.0), sample)
    assert checks(service, BEFORE, [call()])[name] == 1


@pytest.mark.parametrize(("gauge", "name"), [("state_slots", "leaked_slots"), ("streams", "leaked_streams")])
def test_what_never_gets_free_is_found_when_patience_ends(gauge: str, name: str) -> None:
    service = Made(ended(1), (f"serpentine_{gauge}", {"state": "used"}, 1.0), ("serpentine_sessions", {}, 2.0))
    assert checks(service, BEFORE, [call()])[name] == 1
