"""RAVDESS speech: acted clips with a valence, one of eight emotions and averaged action units; altered copies."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pcm = NDArray[np.float32]

RATE_HZ = 16_000
STATEMENTS = {1: "Kids are talking by the door", 2: "Dogs are sitting by the door"}
VALENCE = {1: 0, 2: 0, 3: 1, 4: -1, 5: -1, 6: -1, 7: -1, 8: 0}


@dataclass(frozen=True)
class Recording:
    """One clip. `emotion` counts from 0 in the order of EMOTIONS; `units` [35] action units averaged over the clip."""

    id: str
    actor: int
    emotion: int
    valence: int
    strong: bool
    statement: str
    units: NDArray[np.float32]
    pcm: Pcm

    @property
    def sentiment(self) -> float:
        """The recipe's convention on [-3, 3]: the sign of the valence, 1 in normal and 2 in strong intensity."""
        return float(self.valence * (2 if self.strong else 1))


def recordings(data: Path) -> Iterator[Recording]:
    """The clips of `data`, in the order of the archive. The name of a clip holds all but its action units."""
    import soundfile

    with np.load(data / "ravdess_au.npz") as archive:
        units = {i.split("-", 1)[1]: row for i, row in zip(archive["ids"], archive["au"], strict=True)}
    with tarfile.open(data / "ravdess_speech_flac16k.tar") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None or not member.name.endswith(".flac"):
                continue
            name = Path(member.name).stem
            _, _, emotion, intensity, statement, _, actor = (int(part) for part in name.split("-"))
            pcm, rate = soundfile.read(io.BytesIO(file.read()), dtype="float32")
            if rate != RATE_HZ:
                raise ValueError(f"{member.name}: {rate} Hz, expected {RATE_HZ}")
            yield Recording(
                id=name,
                actor=actor,
                emotion=emotion - 1,
                valence=VALENCE[emotion],
                strong=intensity == 2,
                statement=STATEMENTS[statement],
                units=units[name.split("-", 1)[1]],
                pcm=pcm,
            )


def altered(pcm: Pcm, rng: np.random.Generator) -> Pcm:
    """A copy as another voice, microphone and room might have given it: speed with pitch, band, noise, gain."""
    from scipy import signal

    speed = rng.uniform(0.88, 1.12)
    x = signal.resample(pcm, int(len(pcm) / speed)).astype(np.float32)
    if rng.random() < 0.5:
        low, high = rng.uniform(30, 200), rng.uniform(3500, 7600)
        x = signal.sosfilt(signal.butter(2, (low, high), "band", fs=RATE_HZ, output="sos"), x)
    if rng.random() < 0.6:
        power = float(np.mean(np.square(x)))
        noise = rng.standard_normal(len(x))
        if rng.random() < 0.5:  # brown rather than white
            noise = signal.lfilter([1.0], [1.0, -0.97], noise)
        noise *= np.sqrt(power / np.mean(np.square(noise)) * 10 ** (-rng.uniform(15, 40) / 10))
        x = x + noise
    x = x * 10 ** (rng.uniform(-8, 8) / 20)
    return np.clip(x, -1.0, 1.0).astype(np.float32)
