"""From predictions out of fold to figures: quality with intervals over seeds, ablations, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.models.checkpoint import Calibration
from training.affect.calibrate import (
    best_temperature,
    cross_coverage,
    expected_calibration_error,
    risk_coverage,
    softmax,
    split_conformal,
    threshold_for,
)
from training.affect.jobs import Job
from training.affect.metrics import accuracy, over_seeds, regression_figures
from training.affect.recipe import Recipe
from training.affect.study import ABLATIONS, ALONE, Corpora

Predictions = dict[str, dict[str, NDArray[Any]]]
"""{evaluation: {"ids", "fold" and the outputs: all folds' rows}}"""


def gather(work: Path, variant: str, seed: int, folds: int) -> Predictions | None:
    """All folds' predictions of one variant and seed; None where a fold is missing."""
    found: dict[str, dict[str, list[NDArray[Any]]]] = {}
    for fold in range(folds):
        path = work / f"{variant}-seed{seed}-fold{fold}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                name, _, output = key.rpartition("/")
                found.setdefault(name, {}).setdefault(output, []).append(archive[key])
                if output == "ids":
                    found[name].setdefault("fold", []).append(np.full(len(archive[key]), fold))
    return {name: {k: np.concatenate(v) for k, v in parts.items()} for name, parts in found.items()}


class Targets:
    """The targets of clips by id, as arrays for rows of ids."""

    def __init__(self, corpora: Corpora, recipe: Recipe) -> None:
        self.examples = {clip.id: recipe.vocabulary.example(clip) for clip in corpora.judged}

    def of(self, ids: Sequence[str], target: str) -> NDArray[Any]:
        """`sentiment`, `label` or `emotion` of each id; NaN or -1 where unknown."""
        return np.array([getattr(self.examples[str(i)], target) for i in ids])


def figures_of(rows: Mapping[str, NDArray[Any]], targets: Targets) -> dict[str, float]:
    """acc2, mae, r where there is a sentiment, label and emotion accuracy where there are classes."""
    found = {}
    sentiment = targets.of(rows["ids"], "sentiment").astype(float)
    if not np.isnan(sentiment).any() and len(sentiment) > 1:
        found.update(regression_figures(rows["sentiment"].astype(float), sentiment))
    for output in ("label", "emotion"):
        target = targets.of(rows["ids"], output)
        if output in rows and (target >= 0).all():
            found[output] = accuracy(rows[output], target)
    return found


def summarise(work: Path, jobs: Sequence[Job], recipe: Recipe, corpora: Corpora) -> dict[str, Any]:
    """{variant: {evaluation: {figure: mean, half_width, values, over the seeds whose folds are all there}}}"""
    targets = Targets(corpora, recipe)
    result: dict[str, Any] = {}
    for variant in dict.fromkeys(job.variant for job in jobs):
        by_name: dict[str, dict[str, list[float]]] = {}
        for seed in dict.fromkeys(job.seed for job in jobs if job.variant == variant):
            predictions = gather(work, variant, seed, recipe.folds)
            for name, rows in (predictions or {}).items():
                for figure, value in figures_of(rows, targets).items():
                    by_name.setdefault(name, {}).setdefault(figure, []).append(value)
        result[variant] = {
            name: {figure: over_seeds(values) for figure, values in sorted(figures.items())}
            for name, figures in sorted(by_name.items())
        }
    return result


def calibration_of(
    work: Path, recipe: Recipe, corpora: Corpora, variant: str, coverage: float, risk: float
) -> tuple[Calibration, dict[str, Any]]:
    """Intervals, temperature and threshold from the first seed's predictions out of fold, and their measured worth.

    Every interval's coverage is measured across folds: on each fold with the interval of the others. The temperature
    and the threshold are shared by all subsets, for the service has one of each; the threshold is the lowest
    confidence above which at most `risk` of the labels are wrong.
    """
    targets = Targets(corpora, recipe)
    predictions = gather(work, variant, recipe.seeds[0], recipe.folds)
    if predictions is None:
        raise ValueError(f"{work}: no complete cross-validation of {variant} with seed {recipe.seeds[0]}")
    own = {n: rows for n, rows in predictions.items() if not n.startswith((*ABLATIONS, ALONE))}
    intervals: dict[str, tuple[float, float]] = {}
    measured: dict[str, Any] = {"coverage_aimed_at": coverage, "subsets": {}, "label": {}}
    for subset in dict.fromkeys(name.partition("/")[0] for name in own):
        residuals, folds = [], []
        for rows in (rows for name, rows in own.items() if name.partition("/")[0] == subset):
            gap = targets.of(rows["ids"], "sentiment").astype(float) - rows["sentiment"]
            residuals.append(gap[~np.isnan(gap)])
            folds.append(rows["fold"][~np.isnan(gap)])
        gaps, fold = np.concatenate(residuals).astype(float), np.concatenate(folds)
        if len(gaps) < 100:
            continue
        intervals[subset] = split_conformal(gaps, coverage)
        shares = cross_coverage(gaps, fold.tolist(), coverage)
        counts = [int((fold == k).sum()) for k in np.unique(fold)]
        measured["subsets"][subset] = {
            "low": intervals[subset][0],
            "high": intervals[subset][1],
            "clips": len(gaps),
            "coverage": float(np.average(shares, weights=counts)),
            "coverage_by_fold": shares,
        }
    if "label" not in recipe.outputs:
        return Calibration(coverage, intervals), measured
    logits, labels, where = [], [], []
    for name, rows in own.items():
        target = targets.of(rows["ids"], "label")
        logits.append(rows["label"][target >= 0].astype(float))
        labels.append(target[target >= 0])
        where += [name] * int((target >= 0).sum())
    all_logits, all_labels, names = np.concatenate(logits), np.concatenate(labels), np.array(where)
    temperature = best_temperature(all_logits, all_labels)
    confidence = softmax(all_logits / temperature).max(1)
    right = all_logits.argmax(1) == all_labels
    threshold = threshold_for(confidence, right, risk)
    plain = softmax(all_logits).max(1)
    measured["label"] = {
        "temperature": temperature,
        "abstain_below": threshold,
        "calibration_error_before": expected_calibration_error(plain, right),
        "calibration_error_after": expected_calibration_error(confidence, right),
        "by_subset": {name: _selective(confidence[names == name], right[names == name], threshold) for name in own}
        | {"all": _selective(confidence, right, threshold)},
    }
    return Calibration(coverage, intervals, temperature, threshold), measured


def _selective(confidence: NDArray[Any], right: NDArray[Any], threshold: float) -> dict[str, Any]:
    answered = confidence >= threshold
    return {
        "accuracy": float(right.mean()),
        "answered": float(answered.mean()),
        "accuracy_answered": float(right[answered].mean()) if answered.any() else None,
        "risk_coverage": risk_coverage(confidence, right),
    }
