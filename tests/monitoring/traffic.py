"""A bit of everything that clients do, so that every panel has something to show."""

from __future__ import annotations

import httpx

from tests.api.bodies import as_json, clip
from tests.api.streaming import streaming

PROMPT = {"prompt": "three plus four is", "max_tokens": 30, "temperature": 0}


def send(url: str) -> None:
    """Clips, generations whole and as events, a session, a stream, and what is refused."""
    with httpx.Client(base_url=url, timeout=60) as client:
        for steps in (1, 40):
            answer = client.post("/predict", **as_json(clip(text=steps, audio=steps)))
            assert answer.status_code == 200, answer.text
        assert client.post("/predict", **as_json(clip(audio=3), mood=1)).status_code == 422
        for stream in (False, True):
            answer = client.post("/generate", json=PROMPT | {"stream": stream})
            assert answer.status_code == 200
            assert "response.failed" not in answer.text
        session = client.post("/sessions", json={"model": "tiny"}).raise_for_status().json()["id"]
        assert client.post(f"/sessions/{session}/steps", **as_json(clip(audio=3))).status_code == 200
    with streaming(url) as stream:
        stream.start()
        for t in range(3):
            stream.frame(t=float(t), audio=clip(audio=5)["audio"])
        stream.end()
