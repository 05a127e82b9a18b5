"""The command `predict`, in-process."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from service.commands.predict import describe
from service.engine.prediction import Interval, ModalityReading, Prediction
from service.errors import InvalidInput
from service.runtime import Runtime
from tests.commands.running import run

PREDICTION = Prediction(
    model="tiny",
    sentiment=1.42,
    scale=(-3.0, 3.0),
    label="positive",
    interval=Interval(0.7, 2.1, 0.9),
    confidence=0.83,
    abstained=False,
    probabilities={"negative": 0.05, "neutral": 0.12, "positive": 0.83},
    emotions={"happy": 0.7, "calm": 0.3},
    modalities={"text": ModalityReading(14, 0.8), "audio": ModalityReading(50, None), "video": None},
    notes={"video": "no action units came"},
    timeline=[(0.0, 0.1), (0.04, 1.42)],
    steps=50,
    queue_ms=0.2,
    features_ms=41.0,
    inference_ms=2.9,
    deterministic=True,
)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The runtime answers PREDICTION; the list gets what it was asked."""
    asked: list[tuple[Any, ...]] = []

    def submit(self: Runtime, *arguments: Any, **keywords: Any) -> Future[Prediction]:
        asked.append(arguments)
        future: Future[Prediction] = Future()
        future.set_result(PREDICTION)
        return future

    monkeypatch.setattr(Runtime, "submit", submit)
    return asked


def test_predict_prints_an_answer_to_read(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, answered: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    for name in ("a.wav", "v.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    status, out, err = run(
        capsys, "predict", "--model", tiny_checkpoint, "--text", "so glad", "--audio", tmp_path / "a.wav",
        "--video", tmp_path / "v.mp4", "--timeline", "--attribution",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert out == describe(PREDICTION) + "\n"
    ((model, media, features, options),) = answered
    assert model.name == "tiny"
    assert (media.text[0].text, media.audio, media.video, features) == ("so glad", b"a.wav", b"v.mp4", {})
    assert (options.timeline, options.attribution) == (True, True)


def test_a_prediction_to_read() -> None:
    assert describe(PREDICTION).splitlines() == [
        "positive: +1.42 on -3 to 3, confidence 0.83",
        "90% interval: +0.70 to +2.10",
        "labels: positive 0.83, neutral 0.12, negative 0.05",
        "emotions: happy 0.70, calm 0.30",
        "text: 14 steps, contribution +0.80",
        "audio: 50 steps",
        "video: absent (no action units came)",
        "timeline:",
        "      0.00  +0.10",
        "      0.04  +1.42",
    ]


def test_predict_prints_the_routes_json(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, answered: list[tuple[Any, ...]]
) -> None:
    status, out, _ = run(capsys, "predict", "--model", tiny_checkpoint, "--text", "so glad", "--json")
    body = json.loads(out)
    assert status == 0
    assert body["id"].startswith("pred_")
    assert body["interval"] == {"low": 0.7, "high": 2.1, "coverage": 0.9}
    assert body["timeline"] == [{"t": 0.0, "sentiment": 0.1}, {"t": 0.04, "sentiment": 1.42}]
    assert body["timing_ms"] == {"queue": 0.2, "features": 41.0, "inference": 2.9}


def test_what_is_refused_is_1_with_the_reason_on_stderr(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path
) -> None:
    status, out, err = run(capsys, "predict", "--model", tiny_checkpoint, "--text", "so glad")
    assert (status, out) == (1, "")
    assert err.startswith("serpentine: media.text: ")
    assert len(err.splitlines()) == 1


def test_a_failure_of_the_future_is_1(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    future: Future[Prediction] = Future()
    future.set_exception(InvalidInput.at("media.audio", "no sound in it"))
    monkeypatch.setattr(Runtime, "submit", lambda self, *arguments, **keywords: future)
    status, out, err = run(capsys, "predict", "--model", tiny_checkpoint, "--text", "so glad")
    assert (status, out, err) == (1, "", "serpentine: media.audio: no sound in it\n")
