"""Log-mel frames to sound: a small network draws the fine spectrum, Griffin-Lim finds phases that fit it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.codecs.mel import MelSpec, mel_filters, sound, spectrum

ITERATIONS = 40
# Of fast Griffin-Lim, as its authors chose it (Perraudin, Balazs, Søndergaard, 2013).
MOMENTUM = 0.99


class SpectrumNetwork(nn.Module):
    """Magnitudes of all bins from mel bands: what the bands lose, the harmonics of a voice, is drawn from context.

    log_mel [b, n_mels, t] -> magnitudes [b, bins, t]
    """

    def __init__(self, spec: MelSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.first = nn.Conv1d(spec.n_mels, width, 5, padding=2)
        self.second = nn.Conv1d(width, width, 3, padding=1)
        self.last = nn.Conv1d(width, spec.bins, 1)

    def forward(self, log_mel: Tensor) -> Tensor:
        return self.log_magnitude(log_mel).exp()

    def log_magnitude(self, log_mel: Tensor) -> Tensor:
        """The network corrects a plain guess: each bin as loud as the bands around it."""
        hidden = F.gelu(self.second(F.gelu(self.first(log_mel))))
        spread = mel_filters(self.spec).T
        guess = (spread @ log_mel) / spread.sum(1)[:, None].clamp(min=1e-6)
        corrected: Tensor = guess + self.last(hidden)
        return corrected


def least_squares_magnitude(log_mel: Tensor, spec: MelSpec, steps: int = 100) -> Tensor:
    """Non-negative magnitudes whose mel bands are nearest, by multiplicative updates. [b, n_mels, t] -> [b, bins, t]"""
    filters, target = mel_filters(spec), log_mel.exp()
    magnitude = (filters.T @ target).clamp(min=1e-6)
    for _ in range(steps):
        magnitude = magnitude * (filters.T @ target) / (filters.T @ (filters @ magnitude)).clamp(min=1e-9)
    return magnitude


def griffin_lim(magnitude: Tensor, spec: MelSpec, iterations: int = ITERATIONS, momentum: float = MOMENTUM) -> Tensor:
    """Sound with nearly these magnitudes; the same for the same magnitudes, always.

    Phases begin as if each bin held a steady tone at its centre. magnitude [b, bins, t] -> pcm [b, t·hop]
    """
    bins, frames = magnitude.shape[1:]
    advance = 2 * math.pi * spec.hop / spec.n_fft
    turns = torch.arange(bins)[:, None] * torch.arange(frames)[None] * advance
    estimate = torch.polar(magnitude, turns.expand_as(magnitude).to(magnitude.dtype))
    previous = torch.zeros_like(estimate)
    for _ in range(iterations):
        consistent = spectrum(sound(estimate, spec), spec)
        ahead = consistent + momentum * (consistent - previous)
        previous = consistent
        estimate = magnitude * ahead / ahead.abs().clamp(min=1e-9)
    return sound(estimate, spec)
