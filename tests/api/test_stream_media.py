"""Sound and words over a socket: the value of the file and the transcript, whole and going on elsewhere."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Generator
from typing import Any

import httpx
import numpy as np
import pytest

from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.serving import serving
from tests.api.streaming import Streaming, assert_same_answer, streaming
from tests.checkpoints import build_checkpoint
from tests.features.needs import needs_media
from tests.features.signals import pcm16, wav

pytestmark = needs_media

SAID = [{"t": 0.3, "text": "Well, that was good."}, {"t": 1.4, "text": "Or was it?"}]
SOUND = pcm16(2.0)


@pytest.fixture(scope="module", params=["log-mel-40", "egemaps-lld-25"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[str, None, None]:
    """A model of random weights that reads words and sound."""
    dim = {"log-mel-40": 40, "egemaps-lld-25": 25}[request.param]
    folder = build_checkpoint(tmp_path_factory.mktemp("media") / "raw", modalities={"text": 384, "audio": dim})
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["features"]["modalities"] = {"text": {"recipe": "minilm-l6-384"}, "audio": {"recipe": request.param}}
    (folder / "config.json").write_text(json.dumps(config))
    with serving(Runtime.start(Settings(models=(folder,), slots=4, threads=1), Metrics())) as url:
        yield url


def whole(url: str) -> dict[str, Any]:
    file = base64.b64encode(wav(SOUND.astype(np.float32) / 32768)).decode()
    answer: dict[str, Any] = httpx.post(
        f"{url}/predict", json={"media": {"text": SAID, "audio": {"data": file}}}, timeout=60
    ).json()
    return answer


def send_sound(stream: Streaming, pieces: list[np.ndarray], *, binary: bool) -> None:
    for piece in pieces:
        if binary:
            stream.binary({"audio": piece})
        else:
            stream.frame(audio=piece)


@pytest.mark.parametrize("seed", [1, 2])
def test_sound_in_any_cuts_and_the_same_segments_give_the_value_of_the_files(url: str, seed: int) -> None:
    cuts = np.sort(np.random.default_rng(seed).integers(1, len(SOUND), 9))
    pieces = [piece for piece in np.split(SOUND, cuts) if len(piece)]
    with streaming(url) as stream:
        stream.start(lag_ms=2000)
        send_sound(stream, pieces[:2], binary=seed == 1)
        for segment in SAID:
            stream.frame(**segment)
        send_sound(stream, pieces[2:], binary=seed == 2)
        ended = stream.end()
        assert_same_answer(ended, whole(url))
    assert (stream.errors, ended["late"]) == ([], {})


def test_late_sound_that_shows_only_at_the_end_is_counted(url: str) -> None:
    def counted() -> float:
        sample = re.search(r"^serpentine_late_steps_total\S+ (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
        assert sample
        return float(sample[1])

    before = counted()
    with streaming(url) as stream:
        recipe = stream.start()["recipe"]["modalities"]["audio"]["recipe"]
        stream.frame(audio=SOUND[:16000])
        stream.frame(t=5.0)  # when the last of the sound, which the recipe holds back for more, has long been due
        late = sum(stream.end()["late"].values())
    assert late > 0 or recipe == "log-mel-40"  # which holds back less than a step
    assert counted() == before + late


def test_sound_goes_on_in_another_socket(url: str) -> None:
    with streaming(url) as stream:
        session_id = stream.start(lag_ms=2000)["session_id"]
        for segment in SAID:
            stream.frame(**segment)
        send_sound(stream, [SOUND[:7_001], SOUND[7_001:20_011]], binary=True)
        stream.ask("error", type="frame")  # all before it was read
    until_free(url, session_id)
    with streaming(url) as stream:
        stream.start(session_id=session_id, lag_ms=2000)
        send_sound(stream, [SOUND[20_011:]], binary=False)
        assert_same_answer(stream.end(), whole(url))


def until_free(url: str, session_id: str) -> None:
    """Return when what the socket left has been written."""
    limit = time.monotonic() + 60
    while httpx.get(f"{url}/sessions/{session_id}").json()["version"] == 0:
        assert time.monotonic() < limit
        time.sleep(0.02)
