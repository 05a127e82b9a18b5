"""What the tests of /generate share: a service over generative models, reading an answer's media, idleness."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from service.api.generate_request import checked, sampling_of
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.engine.clips import Gate
from tests.engine.generations import HookedTokens

PROMPT = "three plus four is"
MOST = 60  # tokens of an answer
KINDS = {"text", "image", "speech"}
Generate = Callable[..., Any]  # the fixture `generate`


@contextmanager
def running(*models: Path, **limits: Any) -> Generator[Runtime, None, None]:
    """A runtime over checkpoints, closed at the end."""
    values = {"slots": 8, "threads": 1, "max_body_bytes": 2**24} | limits
    runtime = Runtime.start(Settings(models=models, **values), Metrics())
    try:
        yield runtime
    finally:
        runtime.close(0)


@contextmanager
def held_back(runtime: Runtime, model: str = "trio") -> Generator[Gate, None, None]:
    """None of a model's batches begins while this lasts, unless the gate is opened before: what runs, runs on."""
    gate, runner = Gate(), runtime.model(model, "generation").lane.runner
    free = runner.model
    runner.model = HookedTokens(free, before=gate)
    try:
        yield gate
    finally:
        gate.open()
        runner.model = free


def mixed_seed(runtime: Runtime) -> int:
    """A seed whose answer to PROMPT has text, an image and speech."""
    model = runtime.model("trio", "generation")
    for seed in range(100):
        call = checked({"prompt": PROMPT, "max_tokens": MOST, "seed": seed}, 0)
        params = sampling_of(call.body, model.config, MOST)
        future = runtime.generate(model, call.parts, params, deadline=None, request_id="seed")
        if {model.vocabulary.modality(token) for token in future.result(60).choices[0].tokens} == KINDS:
            return seed
    raise AssertionError("no seed below 100 draws all modalities")


def used_slots(runtime: Runtime, model: str = "trio") -> float | None:
    """Of the gauge `state_slots`."""
    return runtime.metrics.registry.get_sample_value("serpentine_state_slots", {"model": model, "state": "used"})


def picture_size(part: dict[str, Any]) -> tuple[int, int]:
    """Of an image part, which must be a whole PNG."""
    assert part["mime_type"] == "image/png"
    with Image.open(io.BytesIO(base64.b64decode(part["data"])), formats=["PNG"]) as picture:
        picture.load()
        return picture.size


def sound_seconds(part: dict[str, Any]) -> float:
    """Of an audio part, which must be a WAV file."""
    assert part["mime_type"] == "audio/wav"
    with wave.open(io.BytesIO(base64.b64decode(part["data"]))) as sound:
        return sound.getnframes() / sound.getframerate()
