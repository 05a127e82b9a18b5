from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.kernels.cpu import threads


@pytest.fixture(autouse=True)
def _eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(("text", "expected"), [("250000 100000", 3), ("50000 100000", 1), ("max 100000", 8)])
def test_a_quota_of_control_groups_version_2_bounds_the_threads(tmp_path: Path, text: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert threads.default_threads(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("150000", 2), ("-1", 8), ("1600000", 8)])
def test_a_quota_of_control_groups_version_1_bounds_the_threads(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert threads.default_threads(tmp_path) == expected


def test_without_control_groups_every_processor_of_the_mask_counts(tmp_path: Path) -> None:
    assert threads.default_threads(tmp_path) == 8
