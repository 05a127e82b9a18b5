"""Made-up spoken digits: each digit is a glide between two pitches of its own."""

from __future__ import annotations

import numpy as np

from service.codecs.level import PCM
from training.digits.fsdd import RATE, SpokenDigit, prepared


def glide(digit: int, seconds: float, rng: np.random.Generator) -> PCM:
    time = np.arange(round(seconds * RATE)) / RATE
    start, end = 300 + 150 * digit, 1800 - 140 * digit
    phase = 2 * np.pi * (start * time + (end - start) * time**2 / (2 * seconds))
    sound = np.sin(phase) * np.sin(np.pi * time / seconds) ** 0.5 + 0.01 * rng.standard_normal(len(time))
    return (0.2 * sound).astype(np.float32)


def spoken_digits(each: int, seed: int = 0) -> list[SpokenDigit]:
    rng = np.random.default_rng(seed)
    return [
        SpokenDigit(prepared(glide(digit, rng.uniform(0.25, 0.4), rng)), digit, "abc"[index % 3], index)
        for digit in range(10)
        for index in range(each)
    ]
