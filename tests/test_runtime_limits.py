from __future__ import annotations

import contextlib
import random
import threading
import time
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import numpy as np
import pytest

from service.engine.prediction import Prediction, PredictOptions
from service.errors import DeadlineExceeded, Draining, EngineDown, InvalidInput, Overloaded, ServiceError
from service.features.types import Clip, Media, Steps, TextSegment
from service.predicting import LIGHT
from tests.checkpoints import WIDTHS
from tests.engine.clips import Gate
from tests.runtimes import BOTH, Features, StartRuntime, assert_nothing_inside, gate_model, random_features, submit


def test_random_cancellations_leak_nothing(start_runtime: StartRuntime) -> None:
    runtime = start_runtime(max_waiting=10_000, slots=3)
    rng, order = np.random.default_rng(3), random.Random(3)
    futures: list[Future[Prediction]] = []

    def client(part: list[Features]) -> None:
        for features in part:
            futures.append(submit(runtime, features, order.choice([BOTH, PredictOptions()])))
            if order.random() < 0.6:
                time.sleep(order.random() * 0.003)
                order.choice(futures).cancel()

    clips = [random_features(rng) for _ in range(120)]
    threads = [threading.Thread(target=client, args=(clips[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    outcomes = []
    for future in futures:
        try:
            outcomes.append(type(future.result(60)))
        except CancelledError as error:
            outcomes.append(type(error))
    assert len(outcomes) == 120
    assert set(outcomes) == {Prediction, CancelledError}
    assert_nothing_inside(runtime)


def test_cancelling_ends_the_work_within_a_step(start_runtime: StartRuntime) -> None:
    runtime = start_runtime(chunk_steps=5)
    gate = gate_model(runtime)
    prediction = submit(runtime, {"text": Steps(np.ones((30, 6), np.float32))}, PredictOptions())
    gate.wait_reached()
    assert prediction.cancel()
    gate.open()
    assert_nothing_inside(runtime)
    steps = runtime.metrics.registry.get_sample_value(
        "serpentine_batch_steps_sum", {"model": "tiny", "phase": "prefill"}
    )
    assert steps == 5 + 7 * 3  # the chunk that ran, and the probes


def test_what_is_cancelled_before_a_worker_has_time_is_never_extracted(
    start_runtime: StartRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.predicting.LIGHT", 0)
    runtime = start_runtime(feature_threads=1)
    extractor, gate, extracted = runtime.model(None).extractor, Gate(), []
    extract = extractor.extract

    def gated(media: Media, features: Features) -> Clip:
        gate()
        extracted.append(features)
        return extract(media, features)

    monkeypatch.setattr(extractor, "extract", gated)
    features = {"text": Steps(np.ones((3, 6), np.float32))}
    first, second = submit(runtime, features), submit(runtime, features)
    gate.wait_reached()
    assert second.cancel()
    gate.open()
    assert first.result(60).steps == 3
    assert_nothing_inside(runtime, probes=1)
    assert len(extracted) == 2  # the first, and the probe
    sample = runtime.metrics.registry.get_sample_value
    assert sample("serpentine_cancellations_total", {"phase": "features"}) == 1


@pytest.mark.parametrize(
    ("media", "steps", "light"),
    [
        (Media(), 3, True),
        (Media(), 1 + LIGHT // 6, False),
        (Media((TextSegment("so glad"),)), 3, False),
    ],
    ids=["few features", "many features", "words"],
)
def test_only_what_takes_next_to_nothing_is_prepared_by_the_caller(
    start_runtime: StartRuntime, monkeypatch: pytest.MonkeyPatch, media: Media, steps: int, light: bool
) -> None:
    runtime, names = start_runtime(), []
    extractor = runtime.model(None).extractor
    extract = extractor.extract

    def told(media: Media, features: Features) -> Clip:
        names.append(threading.current_thread().name)
        return extract(Media(), features)

    monkeypatch.setattr(extractor, "extract", told)
    features = {"text": Steps(np.ones((steps, 6), np.float32))}
    model, options = runtime.model(None), PredictOptions()
    runtime.submit(model, media, features, options, deadline=None, request_id="test").result(60)
    assert [name == threading.current_thread().name for name in names] == [light]
    id = runtime.sessions.create(model.name, model.snapshots.initial()).id
    runtime.submit(model, media, features, options, deadline=None, request_id="test", session_id=id).result(60)
    assert names[1].startswith("features")  # where a session is kept may be far away


def test_results_that_come_from_several_threads_at_once_answer_once(
    start_runtime: StartRuntime, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = start_runtime()
    features = {name: Steps(np.ones((3, width), np.float32)) for name, width in WIDTHS.items()}
    engine_submit = runtime.engine.submit
    together = threading.Barrier(1 + len(features))

    class Meeting(Future[Any]):
        """A result that is looked at when all of them are there, each on a thread of its own."""

        def exception(self, timeout: float | None = None) -> BaseException | None:
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(0.5)
            return super().exception(timeout)

    def scattered(lane: str, requests: Any) -> list[Future[Any]]:
        results = engine_submit(lane, requests)
        wait(results, 60)
        meetings: list[Future[Any]] = [Meeting() for _ in requests]
        for result, meeting in zip(results, meetings, strict=True):
            threading.Timer(0.05, meeting.set_result, [result.result()]).start()
        return meetings

    monkeypatch.setattr(runtime.engine, "submit", scattered)
    assert submit(runtime, features).result(60).steps == 3
    monkeypatch.undo()
    assert_nothing_inside(runtime)
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_a_full_service_refuses_at_once_and_says_when_to_return(start_runtime: StartRuntime) -> None:
    runtime = start_runtime(slots=2, max_waiting=5)
    gate = gate_model(runtime)
    features = {"text": Steps(np.ones((4, 6), np.float32))}
    futures = [submit(runtime, features, PredictOptions()) for _ in range(3)]
    futures.append(submit(runtime, features))  # attributed: four sequences
    gate.wait_reached()
    with pytest.raises(Overloaded) as refusal:
        submit(runtime, features, PredictOptions())
    assert refusal.value.retry_after_s
    assert runtime.admission.inside == 7
    gate.open()
    for future in futures:
        future.result(60)
    assert_nothing_inside(runtime)


def test_closing_finishes_what_is_inside_and_refuses_the_rest(start_runtime: StartRuntime) -> None:
    runtime = start_runtime()
    gate = gate_model(runtime)
    features = {"text": Steps(np.ones((30, 6), np.float32))}
    inside = submit(runtime, features)
    gate.wait_reached()
    closing = threading.Thread(target=runtime.close, args=(60,))
    closing.start()
    while not runtime.draining:
        time.sleep(0.001)
    assert not runtime.ready
    with pytest.raises(Draining):
        submit(runtime, features)
    gate.open()
    assert inside.result(60).steps == 30
    closing.join(60)
    assert not closing.is_alive()
    assert not runtime.engine_alive


def test_closing_without_time_answers_what_is_inside(start_runtime: StartRuntime) -> None:
    runtime = start_runtime()
    gate = gate_model(runtime)
    inside = submit(runtime, {"text": Steps(np.ones((30, 6), np.float32))})
    gate.wait_reached()
    closing = threading.Thread(target=runtime.close, args=(0,))
    closing.start()
    while not runtime.engine._stopping:
        time.sleep(0.001)
    gate.open()
    with pytest.raises(EngineDown):
        inside.result(60)
    closing.join(60)
    assert runtime.admission.inside == 0


def test_a_dead_engine_refuses(start_runtime: StartRuntime) -> None:
    runtime = start_runtime()
    runtime.engine.stop()
    assert not runtime.engine_alive
    with pytest.raises(EngineDown):
        submit(runtime, {"text": Steps(np.ones((3, 6), np.float32))})
    assert runtime.admission.inside == 0


@pytest.mark.parametrize(
    ("features", "more", "error", "message"),
    [
        ({"text": Steps(np.ones((3, 7), np.float32))}, {}, InvalidInput, "features.text"),
        ({}, {}, InvalidInput, "no modality"),
        ({"text": Steps(np.ones((3, 6), np.float32))}, {"deadline": 0.0}, DeadlineExceeded, "before its features"),
    ],
    ids=["width", "nothing", "late"],
)
def test_what_the_workers_refuse_reaches_the_caller(
    start_runtime: StartRuntime, features: Features, more: dict[str, Any], error: type[ServiceError], message: str
) -> None:
    runtime = start_runtime()
    with pytest.raises(error, match=message):
        submit(runtime, features, **more).result(60)
    assert_nothing_inside(runtime)


def test_a_deadline_that_passes_in_the_engine(start_runtime: StartRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = start_runtime()
    gate, requests, far = gate_model(runtime), [], time.monotonic() + 1000
    engine_submit = runtime.engine.submit

    def spy(lane: str, submitted: list[Any]) -> list[Future[Any]]:
        requests.extend(submitted)
        return engine_submit(lane, submitted)

    monkeypatch.setattr(runtime.engine, "submit", spy)
    late = submit(
        runtime, {name: Steps(np.ones((30, width), np.float32)) for name, width in WIDTHS.items()}, deadline=far
    )
    gate.wait_reached()
    assert [request.deadline for request in requests] == [far] * 4
    requests[2].deadline = time.monotonic()  # that of a leave-one-out: the whole answer is late
    gate.open()
    with pytest.raises(DeadlineExceeded, match="while running"):
        late.result(60)
    assert_nothing_inside(runtime)


def test_idle_sessions_hold_no_slot(start_runtime: StartRuntime) -> None:
    """As many as there are: what they are is a state in memory, and a live request finds every slot free."""
    runtime = start_runtime(slots=1)
    model = runtime.model(None)
    ids = [runtime.sessions.create(model.name, model.snapshots.initial()).id for _ in range(20)]
    features = {"audio": Steps(np.ones((3, 5), np.float32))}
    for id in ids[:3]:
        submit(runtime, features, PredictOptions(), session_id=id).result(60)
    assert submit(runtime, features, PredictOptions()).result(60).steps == 3
    assert_nothing_inside(runtime)
