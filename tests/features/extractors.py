"""Extractors over the bundled recipes, what they are given, and what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import InvalidInput, ServiceError, TooLarge
from service.features.extract import Extractor
from service.features.limits import MediaLimits
from service.features.recipes import FeatureSpec
from service.features.types import Clip, Media, Steps, TextSegment

LIMITS = MediaLimits()
FULL: dict[str, Any] = {
    "text": {"recipe": "minilm-l6-384"},
    "audio": {"recipe": "egemaps-lld-25"},
    "video": {"recipe": "openface-au-35"},
}
WIDTHS = {"text": 384, "audio": 25, "video": 35}
NO_MEDIA = Media()


def extractor(
    modalities: dict[str, Any], dims: dict[str, int], folder: Path = Path("."), limits: MediaLimits = LIMITS
) -> Extractor:
    """On a clock of 25 Hz; `modalities` as config.json has them, `dims` as the model reads them."""
    spec = FeatureSpec.from_json({"clock": {"kind": "ticks", "hz": 25.0}, "modalities": modalities})
    return Extractor(spec, folder, dims, limits)


def said(text: str, t: float | None = None) -> Media:
    return Media(text=(TextSegment(text, t),))


def features(n: int, dim: int, times: list[float] | None = None) -> Steps:
    values = np.random.default_rng(n).normal(size=(n, dim)).astype(np.float32)
    return Steps(values, None if times is None else np.array(times))


def fails(on: Extractor, media: Media = NO_MEDIA, given: dict[str, Steps] | None = None) -> ServiceError:
    """The refusal that must come."""
    with pytest.raises((InvalidInput, TooLarge)) as caught:
        on.extract(media, given or {})
    return caught.value


def loc(error: ServiceError) -> str:
    return ".".join(map(str, error.errors[0].loc))


def same(one: Clip, other: Clip) -> bool:
    """Bit for bit."""
    return (
        one.times.tobytes() == other.times.tobytes()
        and one.present.tobytes() == other.present.tobytes()
        and {name: values.tobytes() for name, values in one.values.items()}
        == {name: values.tobytes() for name, values in other.values.items()}
    )
