"""Figures of merit, and their spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Two-sided 95% quantiles of Student's t by degrees of freedom.
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def regression_figures(predicted: Array, target: Array) -> dict[str, float]:
    """`acc2` by sign over non-zero targets, `mae` and Pearson's `r`, as is usual for MOSI. [n], [n]"""
    polar = target != 0
    right = (predicted > 0) == (target > 0)
    return {
        "acc2": float(right[polar].mean()),
        "mae": float(np.abs(predicted - target).mean()),
        "r": float(np.corrcoef(predicted, target)[0, 1]),
    }


def accuracy(logits: Array, target: NDArray[np.int64]) -> float:
    """Share of rows whose largest logit is the target's. [n, classes], [n]"""
    return float((logits.argmax(1) == target).mean())


def over_seeds(values: Sequence[float]) -> dict[str, float | list[float]]:
    """Mean and half-width of its 95% interval (Student's t over the seeds); the values themselves."""
    n = len(values)
    if n == 0:
        raise ValueError("no values")
    half = 0.0
    if n > 1:
        half = _STUDENT.get(n - 1, 1.96) * float(np.std(values, ddof=1)) / n**0.5
    return {"mean": float(np.mean(values)), "half_width": half, "values": [float(v) for v in values]}
