"""A runtime over the checkpoint of three modalities in tests: asking it, holding its model, reading its metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from service.codecs.prompt import PromptPart, TextPart
from service.engine.generation import Generation
from service.runtime import Runtime
from tests.engine.clips import Gate
from tests.engine.generations import HookedTokens
from tests.generators import params

SEVEN: Sequence[PromptPart] = (TextPart("draw seven"),)


def generate(
    runtime: Runtime, prompt: Sequence[PromptPart] = SEVEN, *, name: str | None = None, **asked: Any
) -> Future[Generation]:
    call = {key: asked.pop(key) for key in ("deadline", "listener", "session_id") if key in asked}
    model = runtime.model(name, "generation")
    given = params(model.vocabulary, **asked)
    return runtime.generate(model, prompt, given, **({"deadline": None, "request_id": "test"} | call))


def gate_trio(runtime: Runtime) -> Gate:
    gate, runner = Gate(), runtime.model("trio", "generation").lane.runner
    runner.model = HookedTokens(runner.model, before=gate)  # type: ignore[arg-type]
    return gate


def assert_nothing_inside(runtime: Runtime) -> None:
    gauges = {"requests_running": {}, "requests_waiting": {}, "state_slots": {"state": "used"}}
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        values = [read(runtime, name, model="trio", **labels) for name, labels in gauges.items()]
        if (runtime.admission.inside, values) == (0, [0, 0, 0]):
            return
        time.sleep(0.005)
    pytest.fail(f"left inside: {runtime.admission.inside}, {values}")


def read(runtime: Runtime, name: str, **labels: str) -> float | None:
    return runtime.metrics.registry.get_sample_value(f"serpentine_{name}", labels)
