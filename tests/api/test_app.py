"""The application over a runtime."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

import service.predicting
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.bodies import as_safetensors, clip


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint: Path) -> Runtime:
    return Runtime.start(Settings(models=(tiny_checkpoint,)), Metrics())


def test_the_engine_leaves_answers_to_the_event_loop(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    composed = list[str]()

    def compose(*args: Any, **more: Any) -> Any:
        composed.append(threading.current_thread().name)
        return predict_from(*args, **more)

    predict_from = service.predicting.predict_from
    monkeypatch.setattr(service.predicting, "predict_from", compose)
    answer = httpx.post(f"{url}/predict", **as_safetensors(clip(text=3)))
    assert answer.status_code == 200
    assert len(composed) == 1
    assert composed[0] != "engine"
