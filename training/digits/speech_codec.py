"""Fits the speech codec: units first, then the vocoder's spectrum on what the units give."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.codecs.level import PCM
from service.codecs.mel import log_mel, spectrum
from service.codecs.speech import WEIGHTS_FILE, SpeechCodec, SpeechConfig, SpeechNetwork
from training.digits.fsdd import SpokenDigit, varied
from training.digits.vq import TrainingQuantizer


@dataclass(frozen=True)
class SpeechCodecSettings:
    """variations: of each clip, beside itself. noise: part of inputs that get some; what is to come out never has."""

    codec: SpeechConfig = field(default_factory=SpeechConfig)
    variations: int = 10
    steps: int = 4500
    vocoder_steps: int = 1200
    batch: int = 32
    learning_rate: float = 2e-3
    commitment: float = 0.25
    listening: float = 0.3
    noise: float = 0.4
    warm_up: int = 300


def train_speech_codec(
    clips: Sequence[SpokenDigit],
    work: Path,
    seed: int,
    log: logging.Logger,
    settings: SpeechCodecSettings | None = None,
) -> SpeechCodec:
    """The codec at work/speech_codec, fitted where it is not there yet; units that are done are not fitted again.

    What is returned has been through its file: its weights are those that will be served.
    """
    settings = settings or SpeechCodecSettings()
    done, begun = work / "speech_codec", work / "speech_codec_units"
    if (done / WEIGHTS_FILE).exists():
        return SpeechCodec.load(done)
    buckets = Buckets(clips, settings.variations, seed, settings.codec)
    log.info("speech codec: %d clips and %d variations of each", len(clips), settings.variations)
    if not (begun / WEIGHTS_FILE).exists():
        SpeechCodec(fit_units(buckets, settings, seed, log)).save(begun)
    network = SpeechCodec.load(begun).network
    fit_vocoder(network, buckets, settings, seed, log)
    SpeechCodec(network).save(done)
    return SpeechCodec.load(done)


@dataclass(frozen=True)
class Batch:
    """Clips of one length: pcm [b, n], mel [b, n_mels, t] (log), label [b] of digit and speaker together."""

    pcm: Tensor
    mel: Tensor
    label: Tensor

    def __getitem__(self, rows: Tensor) -> Batch:
        return Batch(self.pcm[rows], self.mel[rows], self.label[rows])


class Buckets:
    """Clips grouped by how many units they have, so that a batch needs no padding; those that are too long left out."""

    def __init__(self, clips: Sequence[SpokenDigit], variations: int, seed: int, config: SpeechConfig) -> None:
        rng = np.random.default_rng(seed)
        speakers = sorted({clip.speaker for clip in clips})
        groups: dict[int, list[tuple[PCM, int]]] = defaultdict(list)
        for variation in range(variations + 1):
            for clip in clips:
                pcm = varied(clip.pcm, rng) if variation else clip.pcm
                units = -(-len(pcm) // config.unit_samples)
                if 0 < units <= config.max_units:
                    padded = np.pad(pcm, (0, units * config.unit_samples - len(pcm)))
                    groups[units].append((padded, clip.digit * len(speakers) + speakers.index(clip.speaker)))
        self.labels = 10 * len(speakers)
        self.groups: dict[int, Batch] = {}
        for units, group in sorted(groups.items()):
            pcm = torch.from_numpy(np.stack([one for one, _ in group]))
            label = torch.tensor([label for _, label in group])
            self.groups[units] = Batch(pcm, log_mel(pcm, config.mel), label)

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Without end; `size` clips where they have ten units, fewer where more."""
        units = np.array(list(self.groups))
        weights = np.array([len(self.groups[n].pcm) * n for n in units], float)
        while True:
            length = int(rng.choice(units, p=weights / weights.sum()))
            group = self.groups[length]
            yield group[torch.from_numpy(rng.integers(0, len(group.pcm), max(4, size * 10 // length)))]


class Listener(nn.Module):
    """Tells digits and speakers of normalised log-mel [b, n_mels, t]: what it notices is what has to be kept.

    It learns from recordings alone, while the codec learns to sound the same to it. -> (features, logits [b, labels])
    """

    def __init__(self, n_mels: int, labels: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            (nn.Conv1d(n_mels, width, 5, padding=2), nn.Conv1d(width, width, 5, padding=2), nn.Conv1d(width, width, 3))
        )
        self.head = nn.Linear(2 * width, labels)

    def forward(self, mel: Tensor) -> tuple[list[Tensor], Tensor]:
        features, x = [], mel
        for layer in self.layers:
            x = F.gelu(layer(x))
            features.append(x)
            x = F.avg_pool1d(x, 2, ceil_mode=True)
        return features, self.head(torch.cat((x.amax(2), x.mean(2)), 1))


def fit_units(buckets: Buckets, settings: SpeechCodecSettings, seed: int, log: logging.Logger) -> SpeechNetwork:
    """Encoder, codebook and decoder; the vocoder is left as it starts."""
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    config = settings.codec
    network, quantizer = SpeechNetwork(config), TrainingQuantizer(config.codebook, config.code_width)
    every = torch.cat([group.mel.transpose(0, 1).flatten(1) for group in buckets.groups.values()], 1)
    network.mean.copy_(every.mean(1, keepdim=True))
    network.deviation.copy_(every.std(1, keepdim=True))
    listener = Listener(config.mel.n_mels, buckets.labels)
    listening = torch.optim.AdamW(listener.parameters(), 2e-3, weight_decay=0.05)
    weights = [*network.encoder.parameters(), *network.decoder.parameters()]
    optimizer = torch.optim.AdamW(weights, settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps, pct_start=0.1
    )
    seen: list[Tensor] = []
    total = torch.zeros(4)
    for step, batch in zip(range(settings.steps), buckets.batches(settings.batch, rng), strict=False):
        target = (batch.mel - network.mean) / network.deviation
        z = network.vectors(noisy(batch.mel, settings.noise, generator))
        if step < settings.warm_up:
            codes, commitment = z, 1e-3 * z.square().mean()
            seen = [*seen[-40:], z.detach().transpose(1, 2).flatten(0, 1)]
        else:
            if step == settings.warm_up:
                quantizer.start(torch.cat(seen), generator)
            quantized, _, commitment = quantizer(z.transpose(1, 2), generator)
            codes = quantized.transpose(1, 2)
        out = network.decoder(codes)
        _, logits = listener(target)
        listener.zero_grad()
        heard = F.cross_entropy(logits, batch.label)
        heard.backward()
        listening.step()
        distance, likeness = mel_distance(out, target, batch.mel), unlikeness(listener, out, target)
        loss = distance + settings.listening * likeness + settings.commitment * commitment
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        total += torch.stack((distance, likeness, commitment, heard)).detach()
        if (step + 1) % 250 == 0:
            figures = "distance %.4f, unlikeness %.4f, commitment %.4f, listener %.4f"
            log.info(f"units: step %d of %d, {figures}", step + 1, settings.steps, *(total / 250).tolist())
            total.zero_()
    network.codebook.codes.copy_(quantizer.codes)
    return network.eval()


def mel_distance(out: Tensor, target: Tensor, log_mel: Tensor) -> Tensor:
    """Of normalised log-mel frames and of their changes in time; what is loud in `log_mel` counts up to four times."""
    weight = 0.25 + 0.75 * ((log_mel + 4) / 4).clamp(0, 1)
    weight = weight / weight.mean()
    gap = out - target
    change = gap.diff(dim=2)
    return (weight * (gap.abs() + 0.5 * gap.square())).mean() + 0.5 * (weight[:, :, 1:] * change.abs()).mean()


def unlikeness(listener: Listener, out: Tensor, target: Tensor) -> Tensor:
    """How different two sounds are to a listener: in its features, and in what it takes them for."""
    with torch.no_grad():
        wanted_features, wanted = listener(target)
    features, logits = listener(out)
    gaps = [F.l1_loss(one, other) / other.abs().mean() for one, other in zip(features, wanted_features, strict=True)]
    taken_for = F.kl_div(logits.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
    return torch.stack(gaps).mean() + taken_for


def noisy(mel: Tensor, part: float, generator: torch.Generator) -> Tensor:
    """Steady noise of one level under some of the clips [b, n_mels, t]."""
    level = torch.empty(len(mel), 1, 1).uniform_(-4.6, -2.0, generator=generator).exp()
    some = torch.rand(len(mel), 1, 1, generator=generator) < part
    grain = torch.rand(mel.shape, generator=generator) + 0.5
    return torch.where(some, (mel.exp().square() + (level * grain).square()).sqrt().log(), mel)


@torch.no_grad()
def through_units(network: SpeechNetwork, mel: Tensor) -> Tensor:
    """log-mel [b, n_mels, t], encoded and decoded."""
    ids = network.codebook.encode(network.vectors(mel).transpose(1, 2))
    return network.log_mel(network.codebook.decode(ids).transpose(1, 2))


def fit_vocoder(
    network: SpeechNetwork, buckets: Buckets, settings: SpeechCodecSettings, seed: int, log: logging.Logger
) -> None:
    """Fit network.vocoder, in place: from mel bands, as recorded and through units, to the magnitudes of all bins."""
    network.vocoder.requires_grad_(True)
    rng = np.random.default_rng(seed)
    spec, vocoder = settings.codec.mel, network.vocoder
    optimizer = torch.optim.AdamW(vocoder.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=settings.vocoder_steps, pct_start=0.1)
    total = 0.0
    for step, batch in zip(range(settings.vocoder_steps), buckets.batches(settings.batch, rng), strict=False):
        mel = through_units(network, batch.mel) if step % 2 else batch.mel
        target = spectrum(batch.pcm, spec).abs().clamp(min=spec.floor / 4).log()
        loss = F.l1_loss(vocoder.log_magnitude(mel), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        if (step + 1) % 250 == 0:
            log.info("vocoder: step %d of %d, distance %.4f", step + 1, settings.vocoder_steps, total / 250)
            total = 0.0
