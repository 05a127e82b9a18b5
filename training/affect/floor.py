"""A floor under the text figures: ridge regression on pooled token embeddings, on the same folds."""

from __future__ import annotations

import numpy as np

from training.affect.metrics import regression_figures
from training.affect.ridge import Ridge
from training.affect.study import Source


def ridge_on_text(source: Source, corpus: str, folds: int) -> dict[str, float]:
    """Acc-2, MAE and r out of fold for the clips of `corpus`, from the mean and the maximum of their text alone."""
    predicted, target = [], []
    for fold in range(folds):
        training, held = ([c for c in part if c.corpus == corpus] for part in source(fold).split(fold, folds))
        predicted.append(Ridge.fitted(training).predict(held))
        target.append(np.array([clip.sentiment for clip in held], float))
    return regression_figures(np.concatenate(predicted), np.concatenate(target))
