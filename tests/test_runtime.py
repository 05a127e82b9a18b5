from __future__ import annotations

import dataclasses
import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.engine.prediction import Prediction, PredictOptions, predict_from
from service.errors import InvalidInput, NotFound
from service.features.types import Media, Steps
from service.models.checkpoint import Checkpoint, load_checkpoint
from service.models.executables import make_executable
from service.runtime import Runtime
from tests.checkpoints import PARTS, WIDTHS, build_checkpoint
from tests.engine.clips import answer_alone
from tests.runtimes import BOTH, Features, StartRuntime, assert_nothing_inside, random_features, submit


def predict_alone(runtime: Runtime, checkpoint: Checkpoint, features: Features) -> Prediction:
    """The answer by the model itself, without an engine: one pass of one clip."""
    clip = runtime.model(None).extractor.extract(Media(), features)
    model = make_executable(checkpoint.model, "reference")
    outputs, durations = answer_alone(model, clip), dict.fromkeys(("queue_ms", "features_ms"), 0.0)
    return predict_from(
        checkpoint.config, clip, outputs, {}, deterministic=True, timeline=True, inference_ms=0.0, **durations
    )


def close_to(expected: float) -> Any:
    return pytest.approx(expected, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("kind", [{}, {"members": 3}, {"hears": PARTS}], ids=["one", "three members", "of parts"])
def test_concurrent_requests_equal_their_lone_answers(
    start_runtime: StartRuntime, tmp_path: Path, kind: dict[str, Any]
) -> None:
    folder = build_checkpoint(tmp_path / "some", **kind)
    runtime = start_runtime(folder, max_waiting=10_000, slots=16, chunk_steps=13, step_budget=150)
    checkpoint = load_checkpoint(folder)
    rng = np.random.default_rng(0)
    clips = [random_features(rng) for _ in range(200)]
    order, options = random.Random(0), [PredictOptions(), PredictOptions(timeline=True), BOTH]
    with ThreadPoolExecutor(8) as clients:
        futures = list(clients.map(lambda features: submit(runtime, features, order.choice(options)), clips))
    for features, future in zip(clips, futures, strict=True):
        answer, alone = future.result(60), predict_alone(runtime, checkpoint, features)
        assert answer.sentiment == close_to(alone.sentiment)
        assert answer.probabilities == {name: close_to(p) for name, p in (alone.probabilities or {}).items()}
        assert answer.emotions == {name: close_to(p) for name, p in (alone.emotions or {}).items()}
        assert answer.interval == (
            alone.interval
            and dataclasses.replace(
                alone.interval, low=close_to(alone.interval.low), high=close_to(alone.interval.high)
            )
        )
        if answer.timeline is not None:
            assert answer.timeline == [(t, close_to(sentiment)) for t, sentiment in alone.timeline or []]
        assert (answer.steps, set(answer.modalities)) == (alone.steps, set(WIDTHS))
    assert_nothing_inside(runtime)


def test_attribution_is_the_difference_to_the_prediction_without(start_runtime: StartRuntime) -> None:
    runtime = start_runtime()
    rng = np.random.default_rng(1)
    features = {
        name: Steps(rng.standard_normal((n, WIDTHS[name])).astype(np.float32))
        for name, n in (("text", 9), ("audio", 25), ("video", 14))
    }
    whole = submit(runtime, features).result(60)
    for name in WIDTHS:
        rest = {other: steps for other, steps in features.items() if other != name}
        left_out, reading = submit(runtime, rest, PredictOptions()).result(60), whole.modalities[name]
        assert reading is not None
        assert reading.steps == len(features[name].values)
        assert reading.contribution == close_to(whole.sentiment - left_out.sentiment)
        assert abs(whole.sentiment - left_out.sentiment) > 1e-3
    lone = submit(runtime, {"text": features["text"]}).result(60).modalities
    assert lone["text"] is not None
    assert lone["text"].contribution is None
    assert lone["audio"] is None
    plain = submit(runtime, features, PredictOptions()).result(60)
    assert plain.timeline is None
    assert all(reading is not None and reading.contribution is None for reading in plain.modalities.values())


def test_attribution_runs_only_what_it_needs(start_runtime: StartRuntime) -> None:
    runtime = start_runtime()
    features = {"text": Steps(np.ones((9, 6), np.float32)), "audio": Steps(np.ones((25, 5), np.float32))}
    submit(runtime, features, PredictOptions(attribution=True)).result(60)
    assert_nothing_inside(runtime, probes=0)
    sample = runtime.metrics.registry.get_sample_value
    phases = [sample("serpentine_batch_steps_sum", {"model": "tiny", "phase": phase}) for phase in ("prefill", "step")]
    assert sum(steps or 0 for steps in phases) == 25 + 25 + 9  # with both, without text, without audio


def test_the_timeline_at_a_step_is_the_prediction_of_what_came_by_then(start_runtime: StartRuntime) -> None:
    runtime = start_runtime()
    values = np.random.default_rng(2).standard_normal((20, 5)).astype(np.float32)
    whole = submit(runtime, {"audio": Steps(values)}).result(60)
    assert whole.timeline is not None
    assert len(whole.timeline) == 20
    assert whole.timeline[-1][1] == whole.sentiment
    for end in (1, 7, 8, 19):
        prefix = submit(runtime, {"audio": Steps(values[:end])}).result(60)
        assert whole.timeline[end - 1] == (pytest.approx((end - 1) / 10), close_to(prefix.sentiment))


def test_an_aligned_model_that_needs_all_is_not_attributed(start_runtime: StartRuntime, tmp_path: Path) -> None:
    runtime = start_runtime(build_checkpoint(tmp_path / "dense", name="dense", coupling="layers", aligned=True))
    features = {name: Steps(np.ones((6, width), np.float32)) for name, width in WIDTHS.items()}
    prediction = submit(runtime, features).result(60)
    assert [reading and reading.contribution for reading in prediction.modalities.values()] == [None] * 3
    assert [t for t, _ in prediction.timeline or []] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(InvalidInput, match=r"features\.audio: .* input at 0 of 6") as refusal:
        submit(runtime, {name: steps for name, steps in features.items() if name != "audio"}).result(60)
    assert [error.loc for error in refusal.value.errors] == [("features", "audio")]


def test_models_have_names_of_their_own(start_runtime: StartRuntime, tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = build_checkpoint(tmp_path / "other", name="other", dtype=torch.bfloat16, seed=1)
    runtime = start_runtime(tiny_checkpoint, other)
    assert (runtime.model(None).name, runtime.model("other").name) == ("tiny", "other")
    assert runtime.model("other").card["stored_dtype"] == "bfloat16"
    with pytest.raises(NotFound, match="no model 'third'; there are tiny, other"):
        runtime.model("third")
    features = {"text": Steps(np.ones((3, 6), np.float32))}
    answers = [
        runtime.submit(runtime.model(name), Media(), features, PredictOptions(), deadline=None, request_id="x")
        for name in ("tiny", "other")
    ]
    assert [answer.result(60).model for answer in answers] == ["tiny", "other"]
    assert answers[0].result().sentiment != answers[1].result().sentiment
    with pytest.raises(ValueError, match="two checkpoints are named 'tiny'"):
        start_runtime(tiny_checkpoint, tiny_checkpoint)


def test_a_checkpoint_whose_features_are_not_its_models_is_refused_by_its_path(
    start_runtime: StartRuntime, tmp_path: Path
) -> None:
    folder = build_checkpoint(tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    del config["features"]["modalities"]["video"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(folder))}: .*\['audio', 'text'\]"):
        start_runtime(folder)
    config["features"] = {"clock": {"kind": "sundial"}, "modalities": {}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(folder))}: .*sundial"):
        start_runtime(folder)
