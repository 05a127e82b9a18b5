"""Which digit is spoken: a judge of generated speech that knows recordings only."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from service.codecs.level import PCM, levelled
from service.codecs.mel import MelSpec, log_mel
from service.codecs.vocoder import griffin_lim, least_squares_magnitude
from training.digits.fsdd import SpokenDigit, augmented

WEIGHTS_FILE = "model.safetensors"
SPEC = MelSpec(n_mels=40, floor=0.01)
DIGITS = 10
# Longest clip that is heard, in frames; what follows is cut.
FRAMES = 96
BATCH = 64


class DigitNetwork(nn.Module):
    """log-mel [b, n_mels, t] -> logits [b, 10]: convolutions over bands and time, then over time."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()

        def block(before: int, after: int) -> list[nn.Module]:
            return [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]

        self.features = nn.Sequential(
            nn.BatchNorm2d(1), *block(1, width), *block(width, 2 * width), *block(2 * width, 3 * width)
        )
        self.time = nn.Sequential(
            nn.Conv1d(3 * width * (SPEC.n_mels // 8), 96, 3, padding=1, bias=False), nn.BatchNorm1d(96), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(192, DIGITS))

    def forward(self, mel: Tensor) -> Tensor:
        hidden = self.time(self.features(mel[:, None]).flatten(1, 2))  # [b, 96, t / 8]
        logits: Tensor = self.head(torch.cat((hidden.amax(2), hidden.mean(2)), 1))
        return logits


class DigitClassifier:
    """Probabilities of ten digits for clips of 8 kHz."""

    def __init__(self, network: DigitNetwork) -> None:
        self.network = network.eval()

    @torch.no_grad()
    def classify(self, clips: Sequence[PCM]) -> NDArray[np.float32]:
        """-> probabilities [clips, 10]; the loudness of a clip does not matter."""
        parts = [self.network(features(clips[i : i + 256])).softmax(1) for i in range(0, len(clips), 256)]
        return torch.cat(parts).numpy() if parts else np.empty((0, DIGITS), np.float32)

    def accuracy(self, clips: Sequence[PCM], labels: Sequence[int]) -> float:
        return float((self.classify(clips).argmax(1) == np.asarray(labels)).mean())

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.network.state_dict(), folder / WEIGHTS_FILE)

    @classmethod
    def load(cls, folder: Path) -> DigitClassifier:
        network = DigitNetwork()
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
        return cls(network)


def train_speech_classifier(
    clips: Sequence[SpokenDigit], work: Path, seed: int, log: logging.Logger
) -> DigitClassifier:
    """The judge at work/speech_classifier, fitted on recordings where it is not there yet."""
    folder = work / "speech_classifier"
    if not (folder / WEIGHTS_FILE).exists():
        labels = [clip.digit for clip in clips]
        train_classifier([clip.pcm for clip in clips], labels, seed=seed, log=log).save(folder)
    return DigitClassifier.load(folder)


def features(clips: Sequence[PCM]) -> Tensor:
    """Clips in the middle of FRAMES frames. -> log-mel [clips, n_mels, FRAMES]"""
    samples = FRAMES * SPEC.hop
    padded = np.zeros((len(clips), samples), np.float32)
    for row, clip in zip(padded, clips, strict=True):
        pcm = levelled(clip[:samples], SPEC.hop)
        start = (samples - len(pcm)) // 2
        row[start : start + len(pcm)] = pcm
    return log_mel(torch.from_numpy(padded), SPEC)


def train_classifier(
    clips: Sequence[PCM],
    labels: Sequence[int],
    *,
    seed: int,
    epochs: int = 16,
    variations: int = 5,
    log: logging.Logger | None = None,
) -> DigitClassifier:
    """Fit a new network.

    A third of what it sees went through mel bands and Griffin-Lim, so that a vocoder's traces mean nothing to it.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    pool, truth = [features(clips)], torch.as_tensor(labels)
    for variation in range(variations):
        pool.append(features([augmented(clip, rng) for clip in clips]))
        if variation % 2 == 0:
            pool.append(features(revoiced([augmented(clip, rng) for clip in clips])))
    mels, targets = torch.cat(pool), truth.repeat(len(pool))
    network = DigitNetwork()
    steps_an_epoch = 2 * max(1, len(clips) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * steps_an_epoch)
    for epoch in range(epochs):
        network.train()
        total = 0.0
        for _ in range(steps_an_epoch):
            rows = torch.from_numpy(rng.integers(0, len(mels), BATCH))
            x = masked(torch.roll(mels[rows], int(rng.integers(-16, 17)), 2), rng)
            loss = F.cross_entropy(network(x), targets[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if log:
            log.info("classifier epoch %d of %d: loss %.3f", epoch + 1, epochs, total / steps_an_epoch)
    return DigitClassifier(network)


@torch.no_grad()
def revoiced(clips: Sequence[PCM]) -> list[PCM]:
    """Through mel bands and back by Griffin-Lim, without a codec; each as long as it was."""
    spec, found = MelSpec(), []
    for start in range(0, len(clips), BATCH):
        part = clips[start : start + BATCH]
        longest = -(-max(len(clip) for clip in part) // spec.hop) * spec.hop
        padded = torch.from_numpy(np.stack([np.pad(clip, (0, longest - len(clip))) for clip in part]))
        magnitude = least_squares_magnitude(log_mel(padded, spec), spec, steps=40)
        sounds = griffin_lim(magnitude, spec, iterations=20).numpy()
        found += [sound[: len(clip)] for sound, clip in zip(sounds, part, strict=True)]
    return found


def masked(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """SpecAugment: a few bands and a few frames of each clip [b, n_mels, t] silent."""
    low, first = (torch.from_numpy(rng.integers(0, end - 8, len(mel))) for end in mel.shape[1:])
    bands, frames = (torch.from_numpy(rng.integers(0, 8, len(mel))) for _ in range(2))
    band, frame = torch.arange(mel.shape[1]), torch.arange(mel.shape[2])
    in_band = (band >= low[:, None]) & (band < (low + bands)[:, None])
    in_time = (frame >= first[:, None]) & (frame < (first + frames)[:, None])
    return mel.masked_fill(in_band[:, :, None] | in_time[:, None], float(np.log(SPEC.floor)))
