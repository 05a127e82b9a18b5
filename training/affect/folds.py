"""Splits that keep a group (a video, an actor, a dialogue) on one side."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Protocol


class Grouped(Protocol):
    """What folds are drawn of: a sentence or a clip."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def corpus(self) -> str:
        """The corpus, within which folds are drawn."""

    @property
    def group(self) -> str:
        """What is never split: a video, an actor."""


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


def folds_within_corpora(items: Sequence[Grouped], k: int) -> dict[str, int]:
    """{id: fold}, drawn within each corpus, whatever the other corpora are; a group is never split."""
    fold_of: dict[str, int] = {}
    for corpus in sorted({item.corpus for item in items}):
        rows = [item for item in items if item.corpus == corpus]
        folds = grouped_folds([f"{corpus}/{item.group}" for item in rows], k)
        fold_of.update(zip((item.id for item in rows), folds, strict=True))
    return fold_of
