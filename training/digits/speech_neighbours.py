"""How near clips are to those of the training set: copies are nearer than any new recording is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from service.codecs.level import PCM, levelled
from service.codecs.mel import MelSpec, log_mel

SPEC = MelSpec()
# Every clip is stretched to as many columns.
COLUMNS = 24


def nearest_distances(clips: Sequence[PCM], training: Sequence[PCM]) -> NDArray[np.float32]:
    """Of each clip, to the training clip nearest to it: root mean square of log-mel gaps, time stretched to match."""
    return torch.cdist(_pictures(clips), _pictures(training)).amin(1).numpy() / np.sqrt(SPEC.n_mels * COLUMNS)


def neighbour_statistics(
    generated: Sequence[PCM], held_back: Sequence[PCM], training: Sequence[PCM]
) -> dict[str, dict[str, float]]:
    """{"generated", "held_back": {"p5", "median", "mean"}} of nearest_distances.

    Generated clips that are not copies lie about as far from the training set as held-back ones do.
    """
    rows = {"generated": nearest_distances(generated, training), "held_back": nearest_distances(held_back, training)}
    return {
        name: {
            "p5": float(np.quantile(found, 0.05)),
            "median": float(np.median(found)),
            "mean": float(found.mean()),
        }
        for name, found in rows.items()
    }


def _pictures(clips: Sequence[PCM]) -> torch.Tensor:
    """-> log-mel [clips, n_mels·COLUMNS]"""
    rows = []
    for clip in clips:
        level = levelled(clip, SPEC.hop)
        mel = log_mel(torch.from_numpy(np.pad(level, (0, -len(level) % SPEC.hop)))[None], SPEC)
        rows.append(F.interpolate(mel, COLUMNS, mode="linear", align_corners=True).flatten())
    return torch.stack(rows)
