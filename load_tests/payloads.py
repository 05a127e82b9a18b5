"""What is sent. Each is made once: clients are to cost little beside the service."""

from __future__ import annotations

import base64
import io
import json
import wave
from dataclasses import dataclass
from functools import cache

import numpy as np
from safetensors.numpy import save

JSON, SAFETENSORS, FORM = "application/json", "application/vnd.safetensors", "multipart/form-data; boundary=cut-here"
WIDTHS = {"text": 384, "audio": 25, "video": 35}  # of the bundled affect-small
CLOCK_HZ = 25

SENTENCES = (
    "I absolutely loved this film, every minute of it.",
    "What a waste of time, I hated every minute.",
    "It was all right, though the second half could have been shorter.",
    "The acting is superb and the music stays with you for days.",
    "Nobody in this cinema laughed, and it was meant to be a comedy.",
)
PROMPTS = ("three plus four is", "draw three", "say five", "two plus six is", "draw seven and say it")


@dataclass(frozen=True)
class Post:
    """One request's body. deadline_ms goes as a header."""

    kind: str
    path: str
    body: bytes
    content_type: str = JSON
    deadline_ms: int | None = None

    def headers(self, id: str) -> dict[str, str]:
        """Of the request."""
        headers = {"Content-Type": self.content_type, "X-Request-Id": id}
        if self.deadline_ms is not None:
            headers["X-Deadline-Ms"] = str(self.deadline_ms)
        return headers


def text_clip(number: int) -> Post:
    """A sentence."""
    sentence = SENTENCES[number % len(SENTENCES)]
    return Post("text clip", "/predict", json.dumps({"media": {"text": sentence}}).encode())


@cache
def feature_clip(steps: int, kind: str = "feature clip") -> Post:
    """Feature steps of all three modalities as safetensors."""
    return Post(kind, "/predict", save(_features(steps)), SAFETENSORS)


@cache
def json_clip(steps: int) -> Post:
    """The same as JSON."""
    features = {name: values.tolist() for name, values in _features(steps).items()}
    return Post("feature clip, JSON", "/predict", json.dumps({"features": features}).encode())


@cache
def form_clip(seconds: float) -> Post:
    """Words and a recording as a form."""
    parts = [
        b'--cut-here\r\nContent-Disposition: form-data; name="text"\r\n\r\n' + SENTENCES[0].encode() + b"\r\n",
        b'--cut-here\r\nContent-Disposition: form-data; name="audio"; filename="a.wav"\r\n\r\n',
        recording(seconds) + b"\r\n--cut-here--\r\n",
    ]
    return Post("recording, form", "/predict", b"".join(parts), FORM)


def prompt(number: int, **options: object) -> Post:
    """A prompt, with whatever else /generate reads."""
    body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, **options}
    return Post("generation", "/generate", json.dumps(body).encode())


@cache
def recording(seconds: float) -> bytes:
    """A WAV file of something between a tone and noise."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(pcm(seconds))
    return file.getvalue()


@cache
def pcm(seconds: float) -> bytes:
    """s16le at 16 kHz."""
    t = np.arange(int(16_000 * seconds)) / 16_000
    noise = np.random.default_rng(0).standard_normal(len(t))
    sound = 0.3 * np.sin(2 * np.pi * 140 * t) + 0.05 * noise
    return (np.clip(sound, -1, 1) * 32_767).astype("<i2").tobytes()


@cache
def frames(count: int, hz: int, sound: bool) -> tuple[str | bytes, ...]:
    """Messages of a stream at `hz`: PCM as JSON, or feature steps as safetensors."""
    if sound:
        data, size = pcm(count / hz), 2 * 16_000 // hz
        pieces = [base64.b64encode(data[i * size : (i + 1) * size]).decode() for i in range(count)]
        return tuple(
            json.dumps({"type": "frame", "t": i / hz, "audio": {"pcm": piece}}) for i, piece in enumerate(pieces)
        )
    steps = CLOCK_HZ // hz + 1
    rows = {name: values for name, values in _features(steps).items() if name != "text"}
    return tuple(
        save({**rows, **{f"timestamps.{name}": _times(i / hz, steps, hz) for name in rows}}) for i in range(count)
    )


def _times(begin: float, steps: int, hz: int) -> np.ndarray:
    return begin + np.arange(steps) / (steps * hz)


def _features(steps: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.standard_normal((steps, dim), dtype=np.float32) for name, dim in WIDTHS.items()}
