"""The core figures, as one line of JSON each."""

from __future__ import annotations

import json
import os
import time

import pytest

from benchmarks import quick
from benchmarks.figures import Bench
from benchmarks.floors import Rates
from benchmarks.pinning import AFFINITY, pin, unpinned
from benchmarks.timing import TURN_RUNS
from benchmarks.works import coupled_scan, decode, predict_engine

KEYS = ["work", "ours", "peer", "peer_name", "ratio", "floor_fraction"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coupled_scan, "STEPS", 4)
    monkeypatch.setattr(predict_engine, "STEPS", 5)
    monkeypatch.setattr(decode, "SIZES", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50})
    monkeypatch.setattr(decode, "PROMPT", 9)
    monkeypatch.setattr(quick, "measure_rates", lambda budget_s: Rates(1e10, 1e9, 1e11, 2e11))
    monkeypatch.setattr(quick, "COMPARISON_S", 0.0)
    monkeypatch.setattr(quick, "pin", lambda: None)  # the suite goes on after it


def test_it_prints_the_core_rows_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    quick.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(row) for row in rows] == [KEYS] * 6
    assert [row["work"] for row in rows] == [
        "coupled_scan/N = 64/32 sequences, seconds",
        "predict_engine/layers/1 clip, seconds",
        "predict_engine/layers/32 clips, seconds",
        "decode/mamba-130m, bf16/prompt of 9, seconds",
        "decode/mamba-130m, bf16/1 at once, seconds",
        "decode/mamba-130m, bf16/32 at once, seconds",
    ]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"], rel=2e-3)
        assert row["floor_fraction"] > 0


def test_late_comparisons_that_are_slow_take_one_round() -> None:
    calls: list[int] = []
    rates = Rates(1.0, 1.0, 1.0, 1.0)
    for hurry in (time.perf_counter() - 1, time.perf_counter() + 60):
        Bench(rates, budget_s=0.0, least=3, hurry=hurry).compare({"a": lambda: calls.append(1)})
    assert len(calls) == (1 + TURN_RUNS) * (1 + 3)


@pytest.mark.skipif(not AFFINITY, reason="processes cannot be kept on a core here")
def test_pinning_leaves_one_core_and_unpinned_gives_all_for_a_while() -> None:
    before = os.sched_getaffinity(0)
    try:
        pin()
        one = os.sched_getaffinity(0)
        with unpinned():
            within = os.sched_getaffinity(0)
        assert (len(one), within, os.sched_getaffinity(0)) == (1, before, one)
    finally:
        os.sched_setaffinity(0, before)
