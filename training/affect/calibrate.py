"""Intervals with a known coverage, a temperature for the label, and a threshold under which it is withheld."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def split_conformal(residuals: Array, coverage: float) -> tuple[float, float]:
    """(low, high) to add to a prediction so that `coverage` of targets fall between; residuals target - prediction [n].

    Split-conformal (Vovk et al. 2005; Lei et al. 2018), equal tails: the k-th smallest and largest residual with
    k = floor((n + 1) (1 - coverage) / 2). Holds for a new clip that is exchangeable with those of `residuals`.
    Raises ValueError where there are too few for that coverage.
    """
    n = len(residuals)
    k = math.floor((n + 1) * (1 - coverage) / 2 + 1e-9)  # 20 * (1 - 0.9) is a little under 2
    if k < 1:
        raise ValueError(f"{n} residuals are too few for a coverage of {coverage}")
    ordered = np.sort(residuals)
    return float(ordered[k - 1]), float(ordered[n - k])


def cross_coverage(residuals: Array, folds: Sequence[int], coverage: float) -> list[float]:
    """Each fold's share of residuals inside the interval that the other folds' give; residuals out of fold [n]."""
    fold = np.asarray(folds)
    shares = []
    for k in np.unique(fold):
        low, high = split_conformal(residuals[fold != k], coverage)
        inside = (residuals[fold == k] >= low) & (residuals[fold == k] <= high)
        shares.append(float(inside.mean()))
    return shares


def softmax(logits: Array) -> Array:
    """[n, classes] -> probabilities."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))


def best_temperature(logits: Array, target: NDArray[np.int64]) -> float:
    """The T of softmax(logits / T) with the least cross-entropy, by golden-section search over log T."""
    rows = np.arange(len(target))

    def loss(log_t: float) -> float:
        p = softmax(logits / math.exp(log_t))[rows, target]
        return float(-np.log(np.maximum(p, 1e-12)).mean())

    low, high, ratio = math.log(0.2), math.log(5.0), (math.sqrt(5) - 1) / 2
    for _ in range(60):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return math.exp((low + high) / 2)


def expected_calibration_error(confidence: Array, right: NDArray[np.bool_], bins: int = 10) -> float:
    """Mean distance between confidence and accuracy over bins of equal width, weighted by their counts."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    error = 0.0
    for k in range(bins):
        here = place == k
        if here.any():
            error += here.mean() * abs(float(confidence[here].mean()) - float(right[here].mean()))
    return float(error)


def risk_coverage(confidence: Array, right: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Error among the answers given, for thresholds that give 5%, 10%, … 100% of them, surest first."""
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~right[order])
    curve = []
    for percent in range(5, 101, 5):
        n = max(1, round(len(order) * percent / 100))
        curve.append(
            {
                "coverage": percent / 100,
                "risk": float(wrong[n - 1] / n),
                "threshold": float(confidence[order[n - 1]]),
            }
        )
    return curve


def threshold_for(confidence: Array, right: NDArray[np.bool_], risk: float) -> float:
    """The lowest confidence such that the error among answers at least as sure is at most `risk`; 1.0 if none is."""
    order = np.argsort(-confidence, kind="stable")
    rates = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(rates <= risk)
    return float(confidence[order[good[-1]]]) if len(good) else 1.0
