"""Sound at a fixed rate to log-mel frames, its spectrum, and back from a spectrum to sound.

Framing is the same everywhere: frame t is centred on sample t·hop + hop/2, so that n·hop samples have exactly n frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class MelSpec:
    """rate, low_hz, high_hz in Hz; hop and n_fft in samples, n_fft - hop even; a Hann window as long as n_fft.

    floor  the least magnitude of a mel band, of sound whose level is `level.LOUD_RMS`: what is below is silence
    """

    rate: int = 8000
    n_fft: int = 256
    hop: int = 80
    n_mels: int = 32
    low_hz: float = 60.0
    high_hz: float = 4000.0
    floor: float = 0.01

    def __post_init__(self) -> None:
        if min(self.rate, self.n_fft, self.hop, self.n_mels) < 1 or self.floor <= 0:
            raise ValueError(f"sizes and floor are to be positive: {self}")
        if self.hop > self.n_fft or (self.n_fft - self.hop) % 2:
            raise ValueError(f"n_fft ({self.n_fft}) less hop ({self.hop}) is to be even and not negative")
        if not 0 <= self.low_hz < self.high_hz <= self.rate / 2:
            raise ValueError(
                f"the bands are to lie within 0 to {self.rate / 2:g} Hz: {self.low_hz:g}, {self.high_hz:g}"
            )

    @property
    def bins(self) -> int:
        return self.n_fft // 2 + 1


@lru_cache(maxsize=8)
def mel_filters(spec: MelSpec) -> Tensor:
    """Triangles, evenly spaced in mel (2595 log10(1 + f/700)), each of sum 1. -> [n_mels, bins] fp32

    Where bands are narrower than a bin, a triangle still holds its nearest bin: no band is empty.
    """
    mel_low, mel_high = (2595 * math.log10(1 + hz / 700) for hz in (spec.low_hz, spec.high_hz))
    mels = torch.linspace(mel_low, mel_high, spec.n_mels + 2, dtype=torch.float64)
    corners = 700 * (10 ** (mels / 2595) - 1)
    hz = torch.arange(spec.bins, dtype=torch.float64) * spec.rate / spec.n_fft
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    filters = torch.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)).clamp(min=0)
    nearest = (hz - centre).abs().argmin(1)
    filters[torch.arange(spec.n_mels), nearest] = filters[torch.arange(spec.n_mels), nearest].clamp(min=1e-3)
    return (filters / filters.sum(1, keepdim=True)).float()


@lru_cache(maxsize=8)
def _window(n_fft: int) -> Tensor:
    return torch.hann_window(n_fft)


def spectrum(pcm: Tensor, spec: MelSpec) -> Tensor:
    """Short-time Fourier transform. pcm [b, n], n a multiple of hop -> [b, bins, n / hop] complex."""
    if pcm.shape[-1] % spec.hop:
        raise ValueError(f"{pcm.shape[-1]} samples are no multiple of the hop, {spec.hop}")
    edge = (spec.n_fft - spec.hop) // 2
    padded = F.pad(pcm, (edge, edge))
    return torch.stft(padded, spec.n_fft, spec.hop, window=_window(spec.n_fft), center=False, return_complex=True)


def sound(spectrum: Tensor, spec: MelSpec) -> Tensor:
    """The sound whose spectrum is nearest, in least squares: overlap-add. [b, bins, t] complex -> [b, t·hop]"""
    pieces = torch.fft.irfft(spectrum, n=spec.n_fft, dim=1) * _window(spec.n_fft)[:, None]  # [b, n_fft, t]
    return _overlap_add(pieces, spec) / _overlapping(spec, spectrum.shape[-1])


def _overlap_add(pieces: Tensor, spec: MelSpec) -> Tensor:
    """[b, n_fft, t] -> [b, t·hop]"""
    length, edge = (pieces.shape[-1] - 1) * spec.hop + spec.n_fft, (spec.n_fft - spec.hop) // 2
    summed = F.fold(pieces, (1, length), (1, spec.n_fft), stride=(1, spec.hop))
    return summed[:, 0, 0, edge : length - edge]


@lru_cache(maxsize=128)
def _overlapping(spec: MelSpec, frames: int) -> Tensor:
    """What the windows' squares come to at each sample of so many frames: Griffin-Lim asks for it 41 times a clip."""
    window = _window(spec.n_fft)
    return _overlap_add((window * window)[None, :, None].expand(1, -1, frames), spec).clamp(min=1e-3)


def log_mel(pcm: Tensor, spec: MelSpec) -> Tensor:
    """Natural logarithms of mel-band magnitudes, no less than log(floor). pcm [b, n] -> [b, n_mels, n / hop]"""
    return mel_of(spectrum(pcm, spec).abs(), spec)


def mel_of(magnitude: Tensor, spec: MelSpec) -> Tensor:
    """log_mel of magnitudes [b, bins, t]. -> [b, n_mels, t]"""
    return (mel_filters(spec) @ magnitude).clamp(min=spec.floor).log()
