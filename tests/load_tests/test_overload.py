"""The figures of overload, on phases that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from load_tests import overload
from load_tests.ledger import Call
from load_tests.service import Service

PHASES = {
    "capacity": ([Call("text clip", "/predict", status=200, seconds=0.1)] * 80, 2.0),
    "half": ([Call("text clip", "/predict", status=200, seconds=0.05)] * 40, 2.0),
    "over": (
        [Call("text clip", "/predict", status=200, seconds=0.08, deadline_s=0.1)] * 72
        + [Call("text clip", "/predict", status=200, seconds=0.2, deadline_s=0.1)] * 2
        + [Call("text clip", "/predict", status=503, code="overloaded", seconds=0.001, deadline_s=0.1)] * 726,
        2.1,
    ),
}


def test_goodput_is_what_came_in_time_over_all_of_the_time_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: dict[str, dict[str, Any]] = {}
    order = []

    def run(self: object, name: str, **plan: Any) -> tuple[list[Call], dict[str, Any]]:
        plans[name] = plan
        order.append(name)
        calls, seconds = PHASES[name]
        return calls, {"seconds": seconds, "late_p99_ms": 1.0}

    monkeypatch.setattr(overload._Phases, "run", run)
    figures, _ = overload.overload(Service(""), tmp_path, "text", overload.Lengths(4, 2, 4))
    assert (plans["half"]["rate"], plans["over"]["rate"], plans["over"]["deadline_ms"]) == (20.0, 400.0, 100)
    assert order == ["capacity", "half", "over", "capacity", "over"]
    assert plans["capacity"]["seconds"] == plans["over"]["seconds"] == 2
    assert figures["capacity_per_s"] == 40
    assert figures["goodput_ratio"] == round(72 / 2.1 / 40, 3)
    assert figures["admitted_p99_ratio"] == 4.0  # those that were late count
    assert figures["answers"] == {"overloaded": 2 * 726, "good": 2 * 72}
