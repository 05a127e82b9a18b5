"""How many replicas there should be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from service.cluster.scaling import wanted


def context(shares: list[float], waiting: list[float]) -> Any:
    told = {"in_slots": dict(enumerate(shares)), "waiting": dict(enumerate(waiting))}
    return SimpleNamespace(aggregated_metrics=told if shares else {}, target_num_replicas=3)


@pytest.mark.parametrize(
    ("shares", "waiting", "replicas"),
    [
        ([0.7, 0.7], [0, 0], 2),  # as full as they should be
        ([1.0, 1.0], [0, 0], 2 / 0.7),
        ([0.07, 0.07], [0, 0], 1),  # never none
        ([0.0, 0.0], [0, 0], 1),
        ([0.7, 0.0], [3, 0], 3),  # one more than there are
        ([1.0, 1.0, 1.0, 1.0], [9, 9, 9, 9], 4 / 0.7),
        ([], [], 3),  # nobody has told yet: as it is
    ],
)
def test_slots_and_queues_decide(shares: list[float], waiting: list[float], replicas: float) -> None:
    assert wanted(context(shares, waiting)) == (pytest.approx(replicas), {})
