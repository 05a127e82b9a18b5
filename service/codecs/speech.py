"""Speech as units: the sound of a few frames is one number of a codebook, and back.

recording -> level, edges -> log-mel -> encoder -> nearest codes -> units
units -> codes -> decoder -> log-mel -> spectrum network -> Griffin-Lim -> recording
"""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from service.codecs.level import PCM, is_silent, levelled, trimmed
from service.codecs.mel import MelSpec, log_mel
from service.codecs.vector_quantizer import Codebook
from service.codecs.vocoder import SpectrumNetwork, griffin_lim
from service.errors import InvalidInput, TooLarge
from service.features.limits import MediaLimits
from service.features.media import Field, decode_audio

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# Below the loudest frame, what counts as silence at the edges of a recording: more, while it is too long.
SILENCE_DB = (40.0, 30.0, 20.0)
# Frames of silence left at the edges.
MARGIN_FRAMES = 3


@dataclass(frozen=True)
class SpeechConfig:
    """codebook: how many units there are. unit_frames: log-mel frames a unit, a power of two. max_units: of a clip.

    width, code_width, vocoder_width are channels; iterations are Griffin-Lim's.
    """

    mel: MelSpec = field(default_factory=MelSpec)
    codebook: int = 512
    unit_frames: int = 4
    max_units: int = 32
    width: int = 80
    code_width: int = 16
    vocoder_width: int = 128
    iterations: int = 40

    def __post_init__(self) -> None:
        sizes = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "mel"}
        wrong = {name: value for name, value in sizes.items() if type(value) is not int or value < 1}
        if wrong:
            raise ValueError(f"a speech codec's sizes are whole numbers from 1; got {wrong}")
        if self.unit_frames & (self.unit_frames - 1):
            raise ValueError(f"unit_frames is a power of two; got {self.unit_frames}")

    @property
    def unit_samples(self) -> int:
        return self.unit_frames * self.mel.hop

    @property
    def max_seconds(self) -> float:
        return self.max_units * self.unit_samples / self.mel.rate

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> SpeechConfig:
        """Of a JSON object. Raises ValueError where keys are unknown or missing, or a value is wrong."""
        mel = raw.get("mel")
        _refuse_keys("mel", mel, MelSpec)
        _refuse_keys("the speech codec's config", raw, cls)
        return cls(**{**raw, "mel": MelSpec(**raw["mel"])})


class Residual(nn.Module):
    """x + a convolution over 2·dilation + 1 frames and one over a frame. [b, width, t], both ways."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.wide = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.narrow = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.narrow(F.gelu(self.wide(F.gelu(x))))
        return x + change


class Encoder(nn.Module):
    """Normalised log-mel [b, n_mels, t·unit_frames] -> vectors to quantise [b, code_width, t]."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        width = config.width
        layers: list[nn.Module] = [nn.Conv1d(config.mel.n_mels, width, 3, padding=1), Residual(width, 1)]
        for _ in range(config.unit_frames.bit_length() - 1):
            layers += [nn.Conv1d(width, width, 2, stride=2), Residual(width, 1)]
        self.layers = nn.Sequential(*layers, nn.GELU(), nn.Conv1d(width, config.code_width, 1))

    def forward(self, mel: Tensor) -> Tensor:
        vectors: Tensor = self.layers(mel)
        return vectors


class Decoder(nn.Module):
    """Code vectors [b, code_width, t] -> normalised log-mel [b, n_mels, t·unit_frames]."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        width = config.width
        layers: list[nn.Module] = [nn.Conv1d(config.code_width, width, 3, padding=1), Residual(width, 1)]
        layers += [Residual(width, 2)]
        for _ in range(config.unit_frames.bit_length() - 1):
            layers += [nn.ConvTranspose1d(width, width, 2, stride=2), Residual(width, 1), Residual(width, 2)]
        self.layers = nn.Sequential(*layers, nn.GELU(), nn.Conv1d(width, config.mel.n_mels, 3, padding=1))

    def forward(self, codes: Tensor) -> Tensor:
        mel: Tensor = self.layers(codes)
        return mel


class SpeechNetwork(nn.Module):
    """All weights of a codec. mean, deviation [n_mels, 1]: of the log-mel of speech.

    vectors  log-mel [b, n_mels, t·unit_frames] -> [b, code_width, t]
    log_mel  the way back
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.codebook = Codebook(torch.zeros(config.codebook, config.code_width))
        self.vocoder = SpectrumNetwork(config.mel, config.vocoder_width)
        self.register_buffer("mean", torch.zeros(config.mel.n_mels, 1))
        self.register_buffer("deviation", torch.ones(config.mel.n_mels, 1))

    def vectors(self, log_mel: Tensor) -> Tensor:
        out: Tensor = self.encoder((log_mel - self.mean) / self.deviation)
        return out

    def log_mel(self, vectors: Tensor) -> Tensor:
        out: Tensor = self.decoder(vectors) * self.deviation + self.mean
        return out


class SpeechCodec:
    """Sound of one short utterance to units, and units to sound. Safe to call from several threads."""

    def __init__(self, network: SpeechNetwork) -> None:
        self.network = network.eval().requires_grad_(False)
        self.config = network.config

    @classmethod
    def load(cls, folder: Path) -> SpeechCodec:
        """Of a folder with config.json and model.safetensors. Raises ValueError with what is wrong with them."""
        network = SpeechNetwork(SpeechConfig.parse(json.loads((folder / CONFIG_FILE).read_text())))
        stored, wanted = load_file(folder / WEIGHTS_FILE), network.state_dict()
        wrong = [f"{name} is missing" for name in wanted.keys() - stored.keys()]
        wrong += [f"{name} is not known" for name in stored.keys() - wanted.keys()]
        wrong += [
            f"{name} is {list(stored[name].shape)}, not {list(wanted[name].shape)}"
            for name in wanted.keys() & stored.keys()
            if stored[name].shape != wanted[name].shape
        ]
        if wrong:
            raise ValueError(f"{folder / WEIGHTS_FILE} does not fit its config: {'; '.join(sorted(wrong))}")
        network.load_state_dict(stored)
        return cls(network)

    def save(self, folder: Path) -> None:
        """Write the folder that `load` reads; weights in half precision."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        tensors = {name: tensor.half().contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(tensors, folder / WEIGHTS_FILE)

    @torch.inference_mode()
    def encode(self, pcm: PCM) -> NDArray[np.int64]:
        """Units of sound [n] at config.mel.rate, of any loudness; the last unit is filled up with silence.

        -> [ceil(n / unit_samples)], each in 0..codebook - 1. Raises ValueError where n is 0 or makes more than
        max_units, or samples are not finite.
        """
        config = self.config
        if pcm.ndim != 1 or not 0 < len(pcm) <= config.max_units * config.unit_samples:
            limit = config.max_units * config.unit_samples
            raise ValueError(f"a clip is [n] with 1 to {limit} samples; got the shape {list(pcm.shape)}")
        if not np.isfinite(pcm).all():
            raise ValueError("a clip's samples are to be finite")
        level = levelled(np.asarray(pcm, np.float32), config.mel.hop)
        padded = torch.from_numpy(np.pad(level, (0, -len(level) % config.unit_samples)))
        vectors = self.network.vectors(log_mel(padded[None], config.mel))  # [1, code_width, units]
        units: NDArray[np.int64] = self.network.codebook.encode(vectors[0].T).numpy()
        return units

    @torch.inference_mode()
    def decode(self, units: Sequence[int] | NDArray[np.int64]) -> PCM:
        """Sound of units: [units·unit_samples] in [-1, 1], the same each time.

        Raises ValueError where there are none, more than max_units, or one that is outside the codebook.
        """
        ids = torch.as_tensor(np.asarray(units, np.int64))
        if ids.dim() != 1 or not 0 < len(ids) <= self.config.max_units:
            raise ValueError(f"a clip has 1 to {self.config.max_units} units; got the shape {list(ids.shape)}")
        log_mel = self.network.log_mel(self.network.codebook.decode(ids).T[None])
        pcm = griffin_lim(self.network.vocoder(log_mel), self.config.mel, self.config.iterations)
        sound: PCM = pcm[0].clamp(-1, 1).numpy()
        return sound

    def read(self, data: bytes, *, field: Field, limits: MediaLimits) -> NDArray[np.int64]:
        """Units of a recording in any container, sample rate and channel count that FFmpeg reads.

        Silence at the edges is cut. Raises InvalidInput at `field` where the file is no sound or silence, TooLarge
        where it passes `limits` or the speech is longer than max_units.
        """
        pcm = decode_audio(data, field=field, limits=limits, rate=self.config.mel.rate)
        pcm = pcm - pcm.mean() if len(pcm) else pcm
        if is_silent(pcm, self.config.mel.hop):
            raise InvalidInput.at(field, "the recording has no sound in it" if len(pcm) else "the recording is empty")
        most = self.config.max_units * self.config.unit_samples
        speech = pcm
        for silence_db in SILENCE_DB:
            speech = trimmed(pcm, self.config.mel.hop, MARGIN_FRAMES * self.config.mel.hop, silence_db)
            if len(speech) <= most:
                return self.encode(speech)
        seconds = len(speech) / self.config.mel.rate
        raise TooLarge.at(
            field, f"the speech lasts {seconds:.2f} s; at most {self.config.max_seconds:g} s, one word, are read"
        )

    def wav(self, units: Sequence[int] | NDArray[np.int64]) -> bytes:
        """`decode` as a WAV file: 16 bits, mono."""
        pcm = np.round(self.decode(units) * 32767).astype("<i2")
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self.config.mel.rate)
            file.writeframes(pcm.tobytes())
        return buffer.getvalue()


def _refuse_keys(what: str, raw: Any, kind: type) -> None:
    names = {one.name for one in fields(kind)}
    if not isinstance(raw, dict) or raw.keys() != names:
        got = sorted(raw) if isinstance(raw, dict) else raw
        raise ValueError(f"{what} has the keys {sorted(names)}; got {got}")
