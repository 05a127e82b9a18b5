"""Raw media over HTTP: what extraction says reaches the client, in each encoding that carries media."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Generator
from typing import Any

import httpx
import numpy as np
import pytest

from service.api.openapi import examples
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.checkpoints import build_checkpoint

pytestmark = pytest.mark.anyio

RECIPES = {"text": "minilm-l6-384", "audio": "log-mel-40", "video": "openface-au-35"}


def tone(seconds: float) -> bytes:
    """A WAV of one channel at 8 kHz."""
    samples = np.sin(np.arange(int(8000 * seconds)) * 0.3) * 9000
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 8000, 0, "NONE", ""))
        writer.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Generator[Runtime, None, None]:
    """A model of random weights that reads raw media; overrides the tiny one of the folder's conftest."""
    folder = build_checkpoint(
        tmp_path_factory.mktemp("media") / "raw", name="raw", modalities={"text": 384, "audio": 40, "video": 35}
    )
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["features"]["modalities"] = {name: {"recipe": recipe} for name, recipe in RECIPES.items()}
    (folder / "config.json").write_text(json.dumps(config))
    runtime = Runtime.start(Settings(models=(folder,), slots=4, max_media_seconds=5.0, max_text_chars=200), Metrics())
    yield runtime
    runtime.close(0)


def encoded(content: bytes) -> dict[str, str]:
    return {"data": base64.b64encode(content).decode()}


async def test_a_form_and_json_give_the_same_answer(client: httpx.AsyncClient) -> None:
    sound = tone(0.5)
    form = await client.post(
        "/predict",
        data={"text": "What a day", "options": '{"timeline": true}'},
        files={"audio": ("a.wav", sound, "audio/wav")},
    )
    document = {"media": {"text": "What a day", "audio": encoded(sound)}, "timeline": True}
    plain = await client.post("/predict", json=document)
    assert form.status_code == plain.status_code == 200, form.text
    one, two = form.json(), plain.json()
    assert one["modalities"]["audio"]["steps"] > 1
    assert one["modalities"]["text"]["steps"] > 1
    for key in ("sentiment", "timeline", "modalities"):
        assert one[key] == two[key]


async def test_text_and_options_may_come_as_files(client: httpx.AsyncClient) -> None:
    files = {"text": ("t.txt", "Größe".encode()), "options": ("blob", b'{"attribution": true}', "application/json")}
    one = await client.post("/predict", files=files)
    two = await client.post("/predict", json={"media": {"text": "Größe"}})
    assert one.json()["sentiment"] == two.json()["sentiment"]
    broken = await client.post("/predict", files={"text": ("t.txt", b"\xff\xfe")})
    assert (broken.status_code, broken.json()["errors"][0]["loc"]) == (422, ["text"])


async def test_media_of_one_modality_and_features_of_another(client: httpx.AsyncClient) -> None:
    segments = [{"t": 0.0, "text": "Well."}, {"t": 1.0, "text": "Fine then."}]
    document = {"media": {"text": segments}, "features": {"video": [[0.5] * 35]}, "attribution": True}
    body = (await client.post("/predict", json=document)).json()
    assert body["modalities"]["audio"] is None
    assert body["modalities"]["video"]["contribution"] != 0
    assert body["modalities"]["text"]["steps"] > 2


async def test_the_examples_of_a_model_that_reads_raw_media_work(client: httpx.AsyncClient, runtime: Runtime) -> None:
    found = examples(runtime.model(None))
    assert list(found) == ["sentence", "segments", "text and features", "features"]
    for name, document in found.items():
        response = await client.post("/predict", json=document)
        assert response.status_code == 200, (name, response.text)


WRONG = {
    "text file named .wav": ({"audio": encoded(b"Dear diary, today I was glad.\n" * 40)}, 422, ["media", "audio"]),
    "empty file": ({"audio": encoded(b"")}, 422, ["media", "audio"]),
    "half a header": ({"audio": encoded(tone(0.5)[:30])}, 422, ["media", "audio"]),
    "no video": ({"video": encoded(tone(0.5)[:30])}, 422, ["media", "video"]),
    "csv of something else": ({"video": encoded(b"frame,timestamp\n1,0.0\n")}, 422, ["media", "video"]),
    "too long": ({"audio": encoded(tone(5.5))}, 413, ["media", "audio"]),
    "blank": ({"text": "  "}, 422, ["media", "text"]),
    "too much text": ({"text": "so " * 100}, 413, ["media", "text"]),
}


@pytest.mark.parametrize(("media", "status", "loc"), WRONG.values(), ids=WRONG.keys())
async def test_what_extraction_refuses_names_the_field(
    client: httpx.AsyncClient, media: dict[str, Any], status: int, loc: list[str]
) -> None:
    response = await client.post("/predict", json={"media": media})
    assert response.status_code == status, response.text
    assert response.json()["errors"][0]["loc"] == loc
    assert response.headers["content-type"] == "application/problem+json"
