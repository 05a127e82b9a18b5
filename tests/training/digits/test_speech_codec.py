import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from service.codecs.speech import SpeechCodec, SpeechConfig
from tests.training.digits.spoken import spoken_digits
from training.digits import speech_codec
from training.digits.speech_codec import Buckets, SpeechCodecSettings, mel_distance, noisy, train_speech_codec
from training.digits.speech_neighbours import nearest_distances

CODEC = SpeechConfig(codebook=32, width=24, code_width=8, vocoder_width=16, max_units=16)
SETTINGS = SpeechCodecSettings(codec=CODEC, variations=1, steps=160, vocoder_steps=40, warm_up=40, learning_rate=5e-3)
LOG = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SpeechCodec]:
    work = tmp_path_factory.mktemp("work")
    return work, train_speech_codec(spoken_digits(4), work, 0, LOG, SETTINGS)


def test_a_trained_codec_keeps_what_was_said(trained: tuple[Path, SpeechCodec]) -> None:
    _, codec = trained
    said = [clip.pcm for clip in spoken_digits(1, seed=9)]
    heard = [codec.decode(codec.encode(pcm)) for pcm in said]
    taken_for = [int(np.argmin([nearest_distances([pcm], [one])[0] for one in said])) for pcm in heard]
    assert sum(digit == other for digit, other in enumerate(taken_for)) >= 8


def test_what_is_done_is_not_done_again(trained: tuple[Path, SpeechCodec], monkeypatch: pytest.MonkeyPatch) -> None:
    work, codec = trained
    monkeypatch.setattr(speech_codec, "fit_units", None)
    monkeypatch.setattr(speech_codec, "fit_vocoder", None)
    again = train_speech_codec(spoken_digits(1), work, 1, LOG, SETTINGS)
    assert (again.decode([1, 2, 3]) == codec.decode([1, 2, 3])).all()


def test_units_outlive_an_interruption(
    trained: tuple[Path, SpeechCodec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, codec = trained
    (tmp_path / "speech_codec_units").symlink_to(work / "speech_codec_units")
    monkeypatch.setattr(speech_codec, "fit_units", None)
    resumed = train_speech_codec(spoken_digits(4), tmp_path, 0, LOG, SETTINGS)
    clip = spoken_digits(1)[0].pcm
    assert (resumed.encode(clip) == codec.encode(clip)).all()


def test_buckets_hold_every_clip_that_fits_at_its_length() -> None:
    clips = spoken_digits(3)
    buckets = Buckets(clips, 0, 0, CODEC)
    assert sum(len(group.pcm) for group in buckets.groups.values()) == len(clips)
    for units, group in buckets.groups.items():
        assert group.pcm.shape[1] == units * CODEC.unit_samples
        assert group.mel.shape[2] == units * CODEC.unit_frames
    short = SpeechConfig(codebook=32, max_units=8)
    assert max(Buckets(clips, 0, 0, short).groups) <= 8


def test_an_error_in_what_is_loud_counts_more() -> None:
    loudness = torch.tensor([-4.6, 0.0]).reshape(1, 2, 1).expand(1, 2, 6)
    target = torch.zeros(1, 2, 6)
    in_quiet, in_loud = target.clone(), target.clone()
    in_quiet[:, 0], in_loud[:, 1] = 1, 1
    quiet, loud = (mel_distance(out, target, loudness) for out in (in_quiet, in_loud))
    assert loud == pytest.approx(4 * quiet)


def test_noise_fills_silence_and_leaves_what_is_loud() -> None:
    mel = torch.tensor([-4.6, 2.0]).reshape(1, 2, 1).expand(64, 2, 6)
    changed = noisy(mel, 1.0, torch.Generator().manual_seed(0)) - mel
    assert changed[:, 0].mean() > 0.5
    assert changed[:, 1].abs().max() < 0.01
    assert torch.equal(noisy(mel, 0.0, torch.Generator()), mel)
