"""The search for the highest rate, on probes that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from load_tests.capacity import STEPS, Capacity, Probe
from load_tests.service import Service


def probe(rate: float, kept: bool) -> Probe:
    return Probe(rate, kept, float(kept), None, None, None, 0.0, 0.0)


@pytest.mark.parametrize("limit", [0.0, 1 / STEPS, 0.35, 0.5, 0.95, 1.0])
def test_the_highest_share_that_keeps_every_objective_is_found(tmp_path: Path, limit: float) -> None:
    tried: list[float] = []

    def both(share: float) -> list[Probe]:
        tried.append(share)
        return [probe(share, True), probe(share, share <= limit + 1e-9)]

    share, seen = Capacity(Service("http://nowhere"), tmp_path, 1.0)._search(both)
    assert share == pytest.approx(limit)
    assert len(tried) <= 5
    assert not limit or [one.rate for one in seen] == [share, share]
