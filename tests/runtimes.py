"""A runtime over the tiny checkpoint in tests: sending it features, holding its model, asking whether it is idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from service.engine.prediction import Prediction, PredictOptions
from service.features.types import Media, Steps
from service.runtime import Runtime
from tests.checkpoints import WIDTHS
from tests.engine.clips import Gate, Hooked

StartRuntime = Callable[..., Runtime]
Features = Mapping[str, Steps]
BOTH = PredictOptions(timeline=True, attribution=True)


def submit(runtime: Runtime, features: Features, options: PredictOptions = BOTH, **more: Any) -> Future[Prediction]:
    arguments = {"deadline": None, "request_id": "test"} | more
    return runtime.submit(runtime.model(None), Media(), features, options, **arguments)


def random_features(rng: np.random.Generator) -> Features:
    """Some of the modalities, of unlike lengths, with and without timestamps; now and then a single step."""
    names = [name for name in WIDTHS if rng.random() < 0.6] or ["audio"]
    features = {}
    for name in names:
        steps = 1 if rng.random() < 0.2 else int(rng.integers(1, 30))
        times = np.sort(rng.uniform(0, 5, steps)) if rng.random() < 0.5 else None
        features[name] = Steps(rng.standard_normal((steps, WIDTHS[name])).astype(np.float32), times)
    return features


def gate_model(runtime: Runtime) -> Gate:
    gate, runner = Gate(), runtime.model(None).lane.runner
    runner.model = Hooked(runner.model, before=gate)
    return gate


def assert_nothing_inside(runtime: Runtime, *, probes: int = 7) -> None:
    deadline = time.monotonic() + 60
    sample = runtime.metrics.registry.get_sample_value
    gauges = [
        ("requests_running", {"model": "tiny"}),
        ("requests_waiting", {"model": "tiny"}),
        ("state_slots", {"model": "tiny", "state": "used"}),
    ]
    while time.monotonic() < deadline:
        values = [sample(f"serpentine_{name}", labels) for name, labels in gauges]
        if runtime.admission.inside == 0 and values == [0, 0, 0]:
            break
        time.sleep(0.005)
    assert (runtime.admission.inside, values) == (0, [0, 0, 0])
    futures = [submit(runtime, {"audio": Steps(np.ones((3, 5), np.float32))}, PredictOptions()) for _ in range(probes)]
    assert len({future.result(60).sentiment for future in futures}) <= 1  # every slot still serves, from afresh
