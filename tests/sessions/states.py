"""States of a model that is no more than their shapes, and sessions of it."""

from __future__ import annotations

import numpy as np
import torch

from service.engine.snapshots import Snapshot, SnapshotFormat
from service.metrics import Metrics
from service.models.base import StateTensor
from service.sessions.session import Store
from service.sessions.sessions import Sessions

FORMAT = SnapshotFormat("tiny", "f" * 64, {"h": StateTensor((5,), torch.float32)})
STATE_BYTES = 20
DAY = 86_400.0


def state(number: int) -> Snapshot:
    """Of `number` steps, whose values say so too."""
    return Snapshot(FORMAT.fingerprint, {"h": torch.full((5,), float(number))}, number)


def number_of(snapshot: Snapshot) -> int:
    """The number of `state`."""
    assert np.unique(snapshot.rows["h"].numpy()).tolist() == [snapshot.steps]
    return snapshot.steps


def sessions_of(store: Store | None = None, *, budget: int = 10, ttl_s: float = DAY, lease_s: float = 10.0) -> Sessions:
    """Room for `budget` sessions in memory."""
    bytes_ = budget * STATE_BYTES
    return Sessions({"tiny": FORMAT}, Metrics(), ttl_s=ttl_s, budget_bytes=bytes_, store=store, lease_s=lease_s)


def gauge(sessions: Sessions, name: str) -> float | None:
    """Of the tiny model's in memory."""
    return sessions.metrics.registry.get_sample_value(f"serpentine_{name}", {"model": "tiny", "tier": "host"})
