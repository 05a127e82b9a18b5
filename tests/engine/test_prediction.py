from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.prediction import Interval, Prediction, predict_from, without
from service.features.types import Clip
from service.models.checkpoint import CheckpointConfig
from tests.checkpoints import CALIBRATION, EMOTIONS, WIDTHS, checkpoint_config, model_config

CONFIG = checkpoint_config(model_config())
PLAIN = dataclasses.replace(checkpoint_config(model_config(outputs={"sentiment": 1})), scale=(0.0, 1.2))


def _clip(**present: list[int]) -> Clip:
    """A clip whose modalities have input where the lists say; a modality that is not named is absent."""
    steps = len(next(iter(present.values())))
    rows = np.array([present.get(name, [0] * steps) for name in WIDTHS], bool)
    values = {
        name: np.arange(steps * WIDTHS[name], dtype=np.float32).reshape(steps, -1) for name in WIDTHS if name in present
    }
    return Clip(values, rows, np.arange(steps) / 10, {"video": "no faces"})


def _outputs(*sentiments: float, labels: tuple[float, ...] = (0, 0, 0), emotion: int = 0) -> NDArray[np.float32]:
    emotions = [2.0 if i == emotion else 0.0 for i in range(8)]
    return np.array([[sentiment, *labels, *emotions] for sentiment in sentiments], np.float32)


def _predict(
    outputs: NDArray[np.float32],
    clip: Clip,
    *,
    config: CheckpointConfig = CONFIG,
    timeline: bool = False,
    **without_outputs: NDArray[np.float32],
) -> Prediction:
    times = {"queue_ms": 1.0, "features_ms": 2.0, "inference_ms": 3.0}
    return predict_from(config, clip, outputs, without_outputs, deterministic=True, timeline=timeline, **times)


def test_outputs_are_read_by_name() -> None:
    prediction = _predict(_outputs(1.25, labels=(0.0, 1.3, 2.6), emotion=3), _clip(text=[1, 1]))
    exponentials = np.exp([0.0, 1.0, 2.0])  # the logits over the temperature, 1.3
    assert prediction.sentiment == 1.25
    assert prediction.label == "positive"
    assert prediction.probabilities is not None
    assert list(prediction.probabilities) == ["negative", "neutral", "positive"]
    assert list(prediction.probabilities.values()) == pytest.approx(exponentials / exponentials.sum(), abs=1e-6)
    assert prediction.confidence == prediction.probabilities["positive"]
    assert prediction.emotions is not None
    assert tuple(prediction.emotions) == EMOTIONS
    assert sum(prediction.emotions.values()) == pytest.approx(1)
    assert max(prediction.emotions, key=lambda name: prediction.emotions[name]) == "sad"
    assert (prediction.queue_ms, prediction.features_ms, prediction.inference_ms) == (1, 2, 3)


@pytest.mark.parametrize(("logit", "abstained"), [(3.0, False), (0.1, True)])
def test_it_abstains_under_the_threshold_of_its_checkpoint(logit: float, abstained: bool) -> None:
    prediction = _predict(_outputs(0.0, labels=(logit, 0.0, 0.0)), _clip(text=[1]))
    assert prediction.confidence is not None
    assert (prediction.confidence < CALIBRATION.abstain_below) == abstained
    assert prediction.abstained == abstained
    assert prediction.label == "negative"  # said all the same


def test_confidence_at_the_threshold_does_not_abstain() -> None:
    reached = _predict(_outputs(0.0, labels=(1.0, 0.0, 0.0)), _clip(text=[1])).confidence
    assert reached is not None
    config = dataclasses.replace(CONFIG, calibration=dataclasses.replace(CALIBRATION, abstain_below=reached))
    assert not _predict(_outputs(0.0, labels=(1.0, 0.0, 0.0)), _clip(text=[1]), config=config).abstained


def test_the_interval_is_that_of_the_modalities_that_were_heard() -> None:
    assert _predict(_outputs(0.5), _clip(text=[1])).interval == Interval(-0.5, pytest.approx(1.3), 0.9)
    assert _predict(_outputs(0.5), _clip(audio=[1])).interval == Interval(-1.0, 1.75, 0.9)
    assert _predict(_outputs(0.5), _clip(text=[1, 0], audio=[0, 1])).interval is None  # nothing calibrated it
    # A modality that came and was never present on the clock counts as absent.
    assert _predict(_outputs(0.5), _clip(text=[1, 1], audio=[0, 0])).interval == Interval(-0.5, pytest.approx(1.3), 0.9)
    assert _predict(_outputs(2.9), _clip(text=[1])).interval == Interval(pytest.approx(1.9), 3.0, 0.9)  # on the scale


def test_modalities_count_their_steps_and_contribute_what_leaving_them_out_changes() -> None:
    clip = _clip(text=[1, 0, 1], audio=[0, 1, 1])
    prediction = _predict(_outputs(1.0), clip, text=_outputs(-0.5, -0.75), audio=_outputs(7.0))
    text, audio = prediction.modalities["text"], prediction.modalities["audio"]
    assert text is not None
    assert audio is not None
    assert (text.steps, text.contribution) == (2, 1.75)
    assert (audio.steps, audio.contribution) == (2, -2.0)  # 7 is off the scale: 3
    assert prediction.modalities["video"] is None
    assert prediction.notes == {"video": "no faces"}
    assert prediction.steps == 3
    alone = _predict(_outputs(1.0), _clip(text=[1])).modalities["text"]
    assert alone is not None
    assert alone.contribution is None


def test_the_timeline_is_on_the_scale_and_ends_with_the_sentiment() -> None:
    prediction = _predict(_outputs(0.5, -8.0, 1.5), _clip(text=[1, 1, 1]), timeline=True)
    assert prediction.timeline == [(0.0, 0.5), (0.1, -3.0), (0.2, 1.5)]
    assert prediction.sentiment == 1.5
    assert _predict(_outputs(9.0), _clip(text=[1])).timeline is None


@pytest.mark.parametrize(
    ("sentiment", "label"),
    [
        (0.0, "negative"),
        (0.49, "negative"),
        (0.51, "neutral"),
        (0.69, "neutral"),
        (0.71, "positive"),
        (1.2, "positive"),
    ],
)
def test_without_a_label_output_the_sentiment_names_it(sentiment: float, label: str) -> None:
    prediction = _predict(np.array([[sentiment]], np.float32), _clip(text=[1]), config=PLAIN)
    assert prediction.label == label  # the band is a twelfth of the scale's width to each side of its middle
    assert (prediction.confidence, prediction.probabilities, prediction.emotions) == (None, None, None)
    assert not prediction.abstained


def test_a_clip_without_a_modality_loses_the_steps_that_were_its_alone() -> None:
    clip = _clip(text=[1, 1, 0, 1], audio=[0, 1, 1, 0])
    rest = without(clip, list(WIDTHS), "text")
    assert rest is not None
    assert rest.present.tolist() == [[False, False], [True, True], [False, False]]
    assert rest.times.tolist() == [0.1, 0.2]
    assert rest.values["audio"].tolist() == clip.values["audio"][1:3].tolist()
    assert without(rest, list(WIDTHS), "audio") is None
    assert clip.present.sum() == 5  # the clip itself is as it was
