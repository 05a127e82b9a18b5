"""A released checkpoint, converted by the command and served, answers what the released code answered."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file

from service.api.app import create_app
from service.cli import main
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.bodies import as_json, as_safetensors

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Generator[Runtime, None, None]:
    """Overrides the tiny one of the folder's conftest."""
    folder = tmp_path_factory.mktemp("converted") / "released"
    weights = GOLDEN / "coupled_release_shared_weights.safetensors"
    assert main(["convert", "--from", "coupled-mamba-release", str(weights), str(folder)]) == 0
    runtime = Runtime.start(Settings(models=(folder,), slots=4), Metrics())
    yield runtime
    runtime.close(0)


@pytest.mark.parametrize("encode", [as_json, as_safetensors])
async def test_predict_on_the_converted_folder(runtime: Runtime, encode: object) -> None:
    recorded = load_file(GOLDEN / "coupled_release_shared_io.safetensors")
    transport = httpx.ASGITransport(create_app(runtime))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        for index, expected in enumerate(recorded["y"][:, 0]):
            clip = {
                "text": recorded["text"][index],
                "audio": recorded["audio"][index],
                "video": recorded["vision"][index],
            }
            response = await client.post("/predict", **encode(clip))  # type: ignore[operator]
            assert response.status_code == 200, response.text
            assert response.json()["sentiment"] == pytest.approx(float(np.float32(expected)), abs=1e-5)
