"""What a sentiment model answers about one clip, and how raw outputs become that answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.features.types import Clip
from service.models.checkpoint import CheckpointConfig

NEUTRAL_BAND = 1 / 12  # of the scale's width, to each side: what a model without a label output calls neutral


@dataclass(frozen=True)
class PredictOptions:
    """timeline: sentiment after every step. attribution: leave-one-out difference of each modality."""

    timeline: bool = False
    attribution: bool = False


@dataclass(frozen=True)
class Interval:
    """Where the sentiment lies with probability `coverage`, by split conformal prediction."""

    low: float
    high: float
    coverage: float


@dataclass(frozen=True)
class ModalityReading:
    """steps: at which the modality had input. contribution: sentiment with it less sentiment without it, or None."""

    steps: int
    contribution: float | None
    note: str | None = None


@dataclass(frozen=True)
class Reading:
    """What the head's outputs after one step say, whatever the step."""

    sentiment: float
    label: str
    confidence: float | None
    abstained: bool
    probabilities: dict[str, float] | None
    emotions: dict[str, float] | None


@dataclass(frozen=True)
class Prediction:
    """The answer. Sentiment on `scale`; times in seconds (steps, for an aligned clock); durations in milliseconds."""

    model: str
    sentiment: float
    scale: tuple[float, float]
    label: str
    interval: Interval | None
    confidence: float | None
    abstained: bool
    probabilities: dict[str, float] | None
    emotions: dict[str, float] | None
    modalities: dict[str, ModalityReading | None]
    notes: dict[str, str]
    deterministic: bool
    timeline: list[tuple[float, float]] | None
    steps: int
    queue_ms: float
    features_ms: float
    inference_ms: float


def without(clip: Clip, names: Sequence[str], modality: str) -> Clip | None:
    """The clip as if `modality` had not been sent, or None where nothing is left. `names` order `present`'s rows."""
    present = clip.present.copy()
    present[list(names).index(modality)] = False
    kept = present.any(axis=0)
    if not kept.any():
        return None
    values = {name: rows[kept] for name, rows in clip.values.items()}
    return Clip(values, present[:, kept], clip.times[kept])


def read_outputs(config: CheckpointConfig, outputs: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Name the columns of the head's outputs [reads, outputs]: {output: [reads, width]}."""
    widths = config.model.outputs
    parts = np.split(outputs.astype(np.float64), np.cumsum(list(widths.values()))[:-1], axis=1)
    return dict(zip(widths, parts, strict=True))


def predict_from(
    config: CheckpointConfig,
    clip: Clip,
    outputs: NDArray[np.float32],
    without_outputs: Mapping[str, NDArray[np.float32]],
    *,
    deterministic: bool,
    timeline: bool,
    queue_ms: float,
    features_ms: float,
    inference_ms: float,
) -> Prediction:
    """Compose the answer from the head's outputs [reads, outputs] on the clip and on it less each modality."""
    read = read_outputs(config, outputs)
    sentiments = _sentiments(config, read)
    last = _reading(config, read, float(sentiments[-1]))
    names = list(config.model.modalities)
    readings: dict[str, ModalityReading | None] = {}
    for row, name in enumerate(names):
        steps = int(clip.present[row].sum())
        contribution = None
        if name in without_outputs:
            contribution = last.sentiment - float(sentiments_of(config, without_outputs[name])[-1])
        readings[name] = ModalityReading(steps, contribution, clip.notes.get(name)) if steps else None
    return Prediction(
        model=config.name,
        scale=config.scale,
        interval=interval_of(config, last.sentiment, [name for name, reading in readings.items() if reading]),
        **vars(last),
        modalities=readings,
        notes=dict(clip.notes),
        deterministic=deterministic,
        timeline=list(zip(clip.times.tolist(), sentiments.tolist(), strict=True)) if timeline else None,
        steps=clip.steps,
        queue_ms=queue_ms,
        features_ms=features_ms,
        inference_ms=inference_ms,
    )


def sentiments_of(config: CheckpointConfig, outputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """The sentiment of each of the head's outputs [reads, outputs], on the scale: [reads]."""
    return _sentiments(config, read_outputs(config, outputs))


def reading_of(config: CheckpointConfig, outputs: NDArray[np.float32]) -> Reading:
    """Read the head's outputs after one step, [outputs]."""
    read = read_outputs(config, outputs[None])
    return _reading(config, read, float(_sentiments(config, read)[0]))


def _sentiments(config: CheckpointConfig, read: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    low, high = config.scale
    return read["sentiment"][:, 0].clip(low, high)


def _reading(config: CheckpointConfig, read: Mapping[str, NDArray[np.float64]], sentiment: float) -> Reading:
    """What the last of the outputs says."""
    probabilities = _probabilities(config, read)
    label, confidence = _label(config, sentiment, probabilities)
    emotion = read.get("emotion")
    return Reading(
        sentiment=sentiment,
        label=label,
        confidence=confidence,
        abstained=confidence is not None and confidence < config.calibration.abstain_below,
        probabilities=probabilities,
        emotions=None if emotion is None else _named(config.emotions, _softmax(emotion[-1])),
    )


def interval_of(config: CheckpointConfig, sentiment: float, modalities: Sequence[str]) -> Interval | None:
    """Where the sentiment lies, as calibrated for clips of these modalities; None where no data could calibrate it."""
    bounds = config.calibration.intervals.get("+".join(sorted(modalities)))
    if bounds is None:
        return None
    low, high = config.scale
    return Interval(max(low, sentiment + bounds[0]), min(high, sentiment + bounds[1]), config.calibration.coverage)


def _probabilities(config: CheckpointConfig, read: Mapping[str, NDArray[np.float64]]) -> dict[str, float] | None:
    if "label" not in read:
        return None
    return _named(config.labels, _softmax(read["label"][-1] / config.calibration.temperature))


def _label(
    config: CheckpointConfig, sentiment: float, probabilities: Mapping[str, float] | None
) -> tuple[str, float | None]:
    if probabilities is not None:
        label = max(probabilities, key=lambda name: probabilities[name])
        return label, probabilities[label]
    low, high = config.scale
    offset, band = sentiment - (low + high) / 2, NEUTRAL_BAND * (high - low)
    return config.labels[0 if offset < -band else 2 if offset > band else 1], None


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials: NDArray[np.float64] = np.exp(logits - logits.max())
    total: float = exponentials.sum()
    return exponentials / total


def _named(names: Sequence[str], values: NDArray[np.float64]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}
