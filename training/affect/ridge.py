"""Ridge regression on pooled token embeddings: a floor under the text figures, and the teacher of the recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.affect.clips import LabelledClip

Array = NDArray[np.float64]

PENALTY = 1000.0


def pooled(clips: Sequence[LabelledClip]) -> Array:
    """The mean and the maximum over the tokens of each clip's text [n, 2 * dim]."""
    rows = [np.concatenate([v.mean(0), v.max(0)]) for v in (clip.features["text"].values for clip in clips)]
    return np.stack(rows).astype(np.float64)


@dataclass(frozen=True)
class Ridge:
    """A sentiment that is linear in standardised `pooled` text: centre, scale, weights [2 * dim] and an offset."""

    centre: Array
    scale: Array
    weights: Array
    offset: float

    @classmethod
    def fitted(cls, clips: Sequence[LabelledClip]) -> Ridge:
        """Fitted to the sentiments of `clips`, all of which have one."""
        x, y = pooled(clips), np.array([clip.sentiment for clip in clips], float)
        centre, scale = x.mean(0), x.std(0) + 1e-3
        x = (x - centre) / scale
        weights = np.linalg.solve(x.T @ x + PENALTY * np.eye(x.shape[1]), x.T @ (y - y.mean()))
        return cls(centre, scale, weights, float(y.mean()))

    def predict(self, clips: Sequence[LabelledClip]) -> Array:
        """The sentiment of each clip from its text alone [n]."""
        found: Array = (pooled(clips) - self.centre) / self.scale @ self.weights + self.offset
        return found


def taught(clips: Sequence[LabelledClip], corpus: str, limit: float) -> list[LabelledClip]:
    """The training clips, where those of text alone have the sentiment that a ridge fitted to `corpus` gives them.

    A thousand scored sentences are few for a recurrence and enough for a ridge, which scores the many others on the
    same scale. Its scores end at `limit` on either side; labels and clips of voice or face stay as they are.
    """
    sentences = [clip for clip in clips if set(clip.features) == {"text"}]
    teacher = Ridge.fitted([clip for clip in sentences if clip.corpus == corpus])
    scores = np.clip(teacher.predict(sentences), -limit, limit)
    score_of = dict(zip((clip.id for clip in sentences), scores.tolist(), strict=True))
    return [replace(clip, sentiment=score_of.get(clip.id, clip.sentiment)) for clip in clips]
