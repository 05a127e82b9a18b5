"""Fits the speech codec: units first, then the vocoder's spectrum on what the units give."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
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
    steps: int = 6000
    vocoder_steps: int = 1500
    batch: int = 32
    learning_rate: float = 1.5e-3
    commitment: float = 0.25
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
    rng = np.random.default_rng(seed)
    variations = [varied(clip.pcm, rng) for _ in range(settings.variations) for clip in clips]
    buckets = Buckets([clip.pcm for clip in clips] + variations, settings.codec)
    log.info("speech codec: %d clips in %d lengths", len(clips) + len(variations), len(buckets.pcm))
    if not (begun / WEIGHTS_FILE).exists():
        SpeechCodec(fit_units(buckets, settings, seed, log)).save(begun)
    network = SpeechCodec.load(begun).network
    fit_vocoder(network, buckets, settings, seed, log)
    SpeechCodec(network).save(done)
    return SpeechCodec.load(done)


class Buckets:
    """Log-mel of clips, grouped by how many units they have, so that a batch needs no padding."""

    def __init__(self, clips: Sequence[PCM], config: SpeechConfig) -> None:
        groups: dict[int, list[PCM]] = defaultdict(list)
        for clip in clips:
            units = -(-len(clip) // config.unit_samples)
            if 0 < units <= config.max_units:
                groups[units].append(np.pad(clip, (0, units * config.unit_samples - len(clip))))
        self.pcm = {units: torch.from_numpy(np.stack(group)) for units, group in sorted(groups.items())}
        self.mel = {units: log_mel(pcm, config.mel) for units, pcm in self.pcm.items()}

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """(pcm [b, n], log-mel [b, n_mels, t]) without end; clips that are longer come in smaller batches."""
        units = np.array(list(self.pcm))
        weights = np.array([len(self.pcm[n]) * n for n in units], float)
        while True:
            length = int(rng.choice(units, p=weights / weights.sum()))
            rows = torch.from_numpy(rng.integers(0, len(self.pcm[length]), max(4, size * 10 // length)))
            yield self.pcm[length][rows], self.mel[length][rows]


def fit_units(buckets: Buckets, settings: SpeechCodecSettings, seed: int, log: logging.Logger) -> SpeechNetwork:
    """Encoder, codebook and decoder; the vocoder is left as it starts."""
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    config = settings.codec
    network, quantizer = SpeechNetwork(config), TrainingQuantizer(config.codebook, config.code_width)
    every = torch.cat([mel.transpose(0, 1).flatten(1) for mel in buckets.mel.values()], 1)
    network.mean.copy_(every.mean(1, keepdim=True))
    network.deviation.copy_(every.std(1, keepdim=True))
    weights = [*network.encoder.parameters(), *network.decoder.parameters()]
    optimizer = torch.optim.AdamW(weights, settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps, pct_start=0.1
    )
    batches = buckets.batches(settings.batch, rng)
    seen: list[Tensor] = []
    total = torch.zeros(2)
    for step in range(settings.steps):
        _, mel = next(batches)
        z = network.encoder((noisy(mel, settings.noise, generator) - network.mean) / network.deviation)
        if step < settings.warm_up:
            codes, commitment = z, 1e-3 * z.square().mean()
            seen = [*seen[-40:], z.detach().transpose(1, 2).flatten(0, 1)]
        else:
            if step == settings.warm_up:
                quantizer.start(torch.cat(seen), generator)
            quantized, _, commitment = quantizer(z.transpose(1, 2), generator)
            codes = quantized.transpose(1, 2)
        out, target = network.decoder(codes), (mel - network.mean) / network.deviation
        distance = mel_distance(out, target)
        loss = distance + settings.commitment * commitment
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        total += torch.stack((distance.detach(), commitment.detach()))
        if (step + 1) % 250 == 0:
            log.info(
                "units: step %d of %d, distance %.4f, commitment %.4f",
                step + 1,
                settings.steps,
                *(total / 250).tolist(),
            )
            total.zero_()
    network.codebook.codes.copy_(quantizer.codes)
    return network.eval()


def mel_distance(out: Tensor, target: Tensor) -> Tensor:
    """Of log-mel frames and of their changes in time, absolute and squared."""
    gap = out - target
    change = gap.diff(dim=2)
    return gap.abs().mean() + 0.5 * gap.square().mean() + 0.5 * change.abs().mean()


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
    for step, (pcm, mel) in zip(range(settings.vocoder_steps), buckets.batches(settings.batch, rng), strict=False):
        if step % 2:
            mel = through_units(network, mel)
        target = spectrum(pcm, spec).abs().clamp(min=spec.floor / 4).log()
        loss = F.l1_loss(vocoder.log_magnitude(mel), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        if (step + 1) % 250 == 0:
            log.info("vocoder: step %d of %d, distance %.4f", step + 1, settings.vocoder_steps, total / 250)
            total = 0.0
