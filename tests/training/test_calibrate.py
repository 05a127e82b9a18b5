import numpy as np
import pytest

from training.affect.calibrate import (
    best_temperature,
    cross_coverage,
    expected_calibration_error,
    risk_coverage,
    softmax,
    split_conformal,
    threshold_for,
)


def test_conformal_covers_what_it_has_not_seen() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        seen, new = rng.gumbel(size=99), rng.gumbel(size=200)  # skewed: equal tails must hold all the same
        low, high = split_conformal(seen, 0.9)
        shares.append(np.mean((new >= low) & (new <= high)))
    assert np.mean(shares) == pytest.approx(0.9, abs=0.01)


def test_conformal_takes_the_ranks_that_the_theorem_names() -> None:
    low, high = split_conformal(np.arange(1.0, 20.0), 0.9)  # n = 19, k = 1
    assert (low, high) == (1.0, 19.0)


def test_too_few_residuals_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        split_conformal(np.zeros(18), 0.9)


def test_cross_coverage_judges_each_fold_by_the_others() -> None:
    rng = np.random.default_rng(1)
    residuals = np.concatenate([rng.normal(size=400), rng.normal(5.0, 1.0, size=100)])
    shares = cross_coverage(residuals, [0] * 200 + [1] * 200 + [2] * 100, 0.9)
    assert shares[2] < 0.2  # the fold that is unlike the others is not covered by them
    assert min(shares[:2]) > 0.8


def test_the_temperature_that_made_the_labels_is_found() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(20_000, 3)) * 4
    target = np.array([rng.choice(3, p=p) for p in softmax(logits / 2.5)])
    assert best_temperature(logits, target) == pytest.approx(2.5, rel=0.05)


def test_calibration_error_is_the_gap() -> None:
    confidence = np.full(1000, 0.95)
    right = np.arange(1000) < 700
    assert expected_calibration_error(confidence, right) == pytest.approx(0.25)


def test_risk_falls_with_coverage_where_confidence_means_something() -> None:
    rng = np.random.default_rng(3)
    confidence = rng.uniform(0.3, 1.0, 5000)
    right = rng.random(5000) < confidence
    curve = risk_coverage(confidence, right)
    assert curve[-1]["coverage"] == 1.0
    assert curve[-1]["risk"] == pytest.approx(1 - right.mean())
    assert curve[3]["risk"] < curve[-1]["risk"] - 0.1
    threshold = threshold_for(confidence, right, 0.2)
    sure = confidence >= threshold
    assert 1 - right[sure].mean() <= 0.2
    assert 0.3 < threshold < 1.0


def test_no_threshold_gives_a_risk_that_nothing_reaches() -> None:
    assert threshold_for(np.array([0.9, 0.8]), np.array([False, False]), 0.1) == 1.0
