import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.digits.spoken import spoken_digits
from training.digits import speech_classifier
from training.digits.speech_classifier import (
    DigitClassifier,
    DigitNetwork,
    features,
    masked,
    revoiced,
    train_classifier,
    train_speech_classifier,
)

LOG = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def classifier() -> DigitClassifier:
    clips = spoken_digits(6)
    return train_classifier(
        [clip.pcm for clip in clips], [clip.digit for clip in clips], seed=0, epochs=12, variations=1
    )


def test_it_learns_to_tell_digits_apart(classifier: DigitClassifier) -> None:
    clips = spoken_digits(3, seed=5)
    assert classifier.accuracy([clip.pcm for clip in clips], [clip.digit for clip in clips]) >= 0.8
    wrong = [(clip.digit + 1) % 10 for clip in clips]
    assert classifier.accuracy([clip.pcm for clip in clips], wrong) <= 0.2


def test_probabilities_do_not_depend_on_loudness_or_company(classifier: DigitClassifier) -> None:
    clips = [clip.pcm for clip in spoken_digits(1, seed=6)]
    together = classifier.classify(clips)
    assert together.shape == (10, 10)
    np.testing.assert_allclose(together.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(classifier.classify([clips[4] * 0.1])[0], together[4], atol=1e-4)
    assert classifier.classify([]).shape == (0, 10)


def test_it_survives_its_folder(classifier: DigitClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier.save(tmp_path / "speech_classifier")
    monkeypatch.setattr(speech_classifier, "train_classifier", None)
    loaded = train_speech_classifier([], tmp_path, 0, LOG)
    clips = [clip.pcm for clip in spoken_digits(1, seed=6)]
    assert (loaded.classify(clips) == classifier.classify(clips)).all()


def test_the_network_is_small() -> None:
    assert sum(weights.numel() for weights in DigitNetwork().parameters()) < 100_000


def test_a_clip_is_heard_from_its_middle() -> None:
    clip = spoken_digits(1)[0].pcm
    mel = features([clip])[0]
    heard = torch.nonzero(mel.amax(0) > mel.min() + 1).flatten()
    assert abs(float(heard.float().mean()) - (speech_classifier.FRAMES - 1) / 2) < 2


def test_revoicing_keeps_length_and_bands() -> None:
    clips = [clip.pcm for clip in spoken_digits(1)[:3]]
    heard = revoiced(clips)
    assert [len(one) for one in heard] == [len(one) for one in clips]
    said = features(clips)
    assert (features(heard) - said).abs().mean() < 0.25 * (said - said.mean()).abs().mean()


def test_masks_hide_a_few_bands_and_frames() -> None:
    mel = torch.zeros(16, speech_classifier.SPEC.n_mels, speech_classifier.FRAMES)
    hidden = masked(mel, np.random.default_rng(0)) != 0
    assert 0 < hidden.float().mean() < 0.3
    assert hidden.all(1).any()
    assert hidden.all(2).any()
