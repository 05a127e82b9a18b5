"""How many replicas there should be: by the slots that are taken, and by what waits for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

FULL = 0.7
"""Share of the slots that is to be taken: what comes at once finds room, and a lost replica's share does too."""


def wanted(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """-> (replicas, no state). Delays and bounds are Serve's, applied afterwards."""
    shares = (context.aggregated_metrics or {}).get("in_slots") or {}
    waiting = (context.aggregated_metrics or {}).get("waiting") or {}
    if not shares:  # none has told yet
        return context.target_num_replicas, {}
    taken = sum(shares.values()) / FULL
    if any(waiting.values()):
        taken = max(taken, len(shares) + 1)  # a queue is a lack, however even the load is
    return max(taken, 1.0), {}
