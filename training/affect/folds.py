"""Splits that keep a group (a video, an actor, a dialogue) on one side."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence


def grouped_folds(groups: Sequence[str], k: int, seed: int = 0) -> list[int]:
    """The fold, 0 to k - 1, of every item; items of one group share a fold and folds are of like size.

    Largest groups first, each to the smallest fold so far; `seed` decides among equals.
    Raises ValueError where there are fewer groups than folds.
    """
    sizes = Counter(groups)
    if not 2 <= k <= len(sizes):
        raise ValueError(f"{k} folds of {len(sizes)} groups: need 2 <= folds <= groups")
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -sizes[group])
    filled = [0] * k
    fold_of = {}
    for group in order:
        fold = filled.index(min(filled))
        fold_of[group] = fold
        filled[fold] += sizes[group]
    return [fold_of[group] for group in groups]
