"""The bundled checkpoint as a new user meets it: raw words and sound in, a sentiment out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.engine.prediction import Prediction, PredictOptions
from service.features.types import Media, TextSegment
from service.metrics import Metrics
from service.models.checkpoint import load_checkpoint
from service.runtime import Runtime
from service.settings import BUNDLED_MODELS, Settings
from tests.features.needs import needs_media

BUNDLED_MODEL = BUNDLED_MODELS[0]
RECORDING = Path(__file__).parent / "media" / "digits.wav"

GLAD = [
    "I absolutely loved this film, every minute of it.",
    "What a wonderful day, I could not be happier.",
    "They did a fantastic job and I am so proud of them.",
]
SAD = [
    "What a waste of time, I hated every minute.",
    "This is the worst day of my life, I feel terrible.",
    "I was so disappointed, it was boring and sad.",
]


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    runtime = Runtime.start(Settings(threads=1, models=(BUNDLED_MODEL,)), Metrics())
    yield runtime
    runtime.close(0)


def predict(runtime: Runtime, media: Media, *, attribution: bool = False) -> Prediction:
    options = PredictOptions(attribution=attribution)
    return runtime.submit(
        runtime.model(None), media, {}, options, deadline=time.monotonic() + 60, request_id="test"
    ).result(60)


@needs_media
@pytest.mark.parametrize("recording", [None, RECORDING.read_bytes()], ids=["words alone", "words and a recording"])
def test_glad_words_are_positive_and_sad_ones_negative(runtime: Runtime, recording: bytes | None) -> None:
    for sentences, sign in ((GLAD, 1), (SAD, -1)):
        for sentence in sentences:
            answer = predict(runtime, Media((TextSegment(sentence),), recording))
            assert answer.sentiment * sign > 0.3, (sentence, answer.sentiment)


@needs_media
def test_a_recording_alone_is_answered(runtime: Runtime) -> None:
    answer = predict(runtime, Media(audio=RECORDING.read_bytes()), attribution=True)
    reading = answer.modalities["audio"]
    assert reading is not None
    assert reading.steps > 5
    assert reading.contribution is None  # of a lone modality there is nothing to leave out
    assert answer.modalities["text"] is answer.modalities["video"] is None
    assert answer.probabilities is not None
    assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_it_is_small_and_says_what_it_is() -> None:
    checkpoint = load_checkpoint(BUNDLED_MODEL)
    assert sum(file.stat().st_size for file in BUNDLED_MODEL.iterdir()) < 8 * 2**20
    assert {"licence", "data", "quality", "intended_use", "limits_of_use"} <= set(checkpoint.config.card)
    assert "text" in checkpoint.config.calibration.intervals
    assert (BUNDLED_MODEL / "MODEL_CARD.md").stat().st_size > 2000
