"""The vocabulary of features: steps of one modality, a clip of several on one clock, raw media."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MODALITIES = ("text", "audio", "video")


@dataclass(frozen=True)
class Steps:
    """Feature steps of one modality.

    values [n, dim] float32, finite
    times  [n] float64 seconds from the clip's start, in any order, or None: at the recipe's rate from t = 0
    """

    values: NDArray[np.float32]
    times: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class TextSegment:
    """A piece of transcript that was said from `t` (seconds; None: unknown) on."""

    text: str
    t: float | None = None


@dataclass(frozen=True)
class Media:
    """Raw input of a clip: any of a transcript, an audio file and a video file (or an OpenFace CSV)."""

    text: tuple[TextSegment, ...] | None = None
    audio: bytes | None = None
    video: bytes | None = None


@dataclass(frozen=True)
class Clip:
    """Modalities joined on one clock: what a model reads.

    values  {modality: [steps, dim] float32}; rows where the modality is absent are zeros and are never read
    present [modalities, steps] bool, modalities in the order of the model's config
    times   [steps] float64 seconds; for an aligned clock, the index
    notes   what the extraction has to say: {"video": "why there is no video"}
    """

    values: Mapping[str, NDArray[np.float32]]
    present: NDArray[np.bool_]
    times: NDArray[np.float64]
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of steps on the clock."""
        return int(self.times.shape[0])
