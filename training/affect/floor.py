"""A floor under the text figures: ridge regression on pooled token embeddings, on the same folds."""

from __future__ import annotations

import numpy as np

from training.affect.metrics import regression_figures
from training.affect.study import Source

PENALTY = 1000.0


def ridge_on_text(source: Source, corpus: str, folds: int) -> dict[str, float]:
    """Acc-2, MAE and r out of fold for the clips of `corpus`, from the mean and the maximum of their text alone."""
    predicted, target = [], []
    for fold in range(folds):
        training, held = source(fold).split(fold, folds)
        parts = []
        for clips in (training, held):
            rows = [c for c in clips if c.corpus == corpus]
            x = np.stack([np.concatenate([v.mean(0), v.max(0)]) for v in (c.features["text"].values for c in rows)])
            parts.append((x.astype(float), np.array([c.sentiment for c in rows], float)))
        (x, y), (new, truth) = parts
        centre, scale = x.mean(0), x.std(0) + 1e-3
        x, new = (x - centre) / scale, (new - centre) / scale
        weights = np.linalg.solve(x.T @ x + PENALTY * np.eye(x.shape[1]), x.T @ (y - y.mean()))
        predicted.append(new @ weights + y.mean())
        target.append(truth)
    return regression_figures(np.concatenate(predicted), np.concatenate(target))
