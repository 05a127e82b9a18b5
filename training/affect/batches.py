"""From labelled clips to packed batches: what is dropped, altered and paired on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.features.types import Clip, Steps
from training.affect.clips import LabelledClip

Join = Callable[[Mapping[str, Steps], Sequence[str]], Clip]
"""Puts modalities of those names on the common clock, as the service does."""

UNKNOWN = -1


@dataclass(frozen=True)
class Example:
    """One sequence for the model: features on their own times, targets as numbers (NaN or UNKNOWN: none), a weight."""

    features: Mapping[str, Steps]
    sentiment: float = float("nan")
    label: int = UNKNOWN
    emotion: int = UNKNOWN
    weight: float = 1.0


@dataclass(frozen=True)
class Batch:
    """Packed sequences: inputs {modality: [t, dim]}, present [m, t], offsets [b + 1]; targets and weights [b]."""

    inputs: dict[str, Tensor]
    present: Tensor
    offsets: Tensor
    sentiment: Tensor
    label: Tensor
    emotion: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Vocabulary:
    """Names of the classes, in the order of the model's outputs."""

    labels: tuple[str, ...]
    emotions: tuple[str, ...]

    def example(self, clip: LabelledClip, weight: float = 1.0) -> Example:
        """The clip as it is. Raises ValueError for a class that is not in the vocabulary."""
        return Example(
            clip.features,
            float("nan") if clip.sentiment is None else clip.sentiment,
            UNKNOWN if clip.label is None else self.labels.index(clip.label),
            UNKNOWN if clip.emotion is None else self.emotions.index(clip.emotion),
            weight,
        )


def pack(examples: Sequence[Example], widths: Mapping[str, int], join: Join) -> Batch:
    """Join each example on the clock and lay them end to end; modalities in the order of `widths`."""
    clips = [join(example.features, list(widths)) for example in examples]
    offsets = np.cumsum([0, *(clip.steps for clip in clips)])
    inputs = {}
    for name, width in widths.items():
        values = np.zeros((offsets[-1], width), np.float32)
        for start, clip in zip(offsets[:-1], clips, strict=True):
            if name in clip.values:
                values[start : start + clip.steps] = clip.values[name]
        inputs[name] = torch.from_numpy(values)
    return Batch(
        inputs,
        torch.from_numpy(np.concatenate([clip.present for clip in clips], 1)),
        torch.from_numpy(offsets.astype(np.int64)),
        torch.tensor([e.sentiment for e in examples], dtype=torch.float32),
        torch.tensor([e.label for e in examples]),
        torch.tensor([e.emotion for e in examples]),
        torch.tensor([e.weight for e in examples], dtype=torch.float32),
    )


def thinned(steps: Steps, rate: float, rng: np.random.Generator, hz: float) -> Steps | None:
    """Without a random `rate` of its steps, each on its own time; None where nothing is left.

    hz  rate of the steps where they carry no times
    """
    n = steps.values.shape[0]
    keep = rng.random(n) >= rate
    return _chosen(steps, keep, hz)


def without_span(steps: Steps, rng: np.random.Generator, hz: float) -> Steps:
    """Without one random span of up to half of its steps: an outage."""
    n = steps.values.shape[0]
    length = int(rng.integers(0, n // 2 + 1))
    start = int(rng.integers(0, n - length + 1))
    keep = np.ones(n, bool)
    keep[start : start + length] = False
    return _chosen(steps, keep, hz) or steps


def _chosen(steps: Steps, keep: NDArray[np.bool_], hz: float) -> Steps | None:
    if not keep.any():
        return None
    times = np.arange(len(keep)) / hz if steps.times is None else steps.times
    return Steps(steps.values[keep], times[keep])


def shifted(steps: Steps, seconds: float, hz: float) -> Steps:
    """Later by `seconds`."""
    times = np.arange(steps.values.shape[0]) / hz if steps.times is None else steps.times
    return Steps(steps.values, times + seconds)
