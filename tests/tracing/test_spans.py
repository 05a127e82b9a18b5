"""The spans of requests: from HTTP through features, queue and batches, under the trace that the client began."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.trace import StatusCode

from service.api.app import create_app
from service.logs import JsonFormatter
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.bodies import as_json, clip
from tests.api.doubles import eventually
from tests.api.serving import serving
from tests.api.streaming import streaming
from tests.runtimes import gate_model
from tests.tracing.spans import NEEDED, PARENT, TRACE, Spans, links, parent, place, traceparent
from tests.trio import build_trio

pytestmark = [NEEDED, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_trio(tmp_path_factory.mktemp("checkpoints") / "trio")


@pytest.fixture
def runtime(tiny_checkpoint: Path, trio: Path, spans: Spans) -> Generator[Runtime, None, None]:
    settings = Settings(models=(tiny_checkpoint, trio), slots=8, chunk_steps=16, threads=1)
    runtime = Runtime.start(settings, Metrics(), spans.tracing)
    yield runtime
    runtime.close(0)


def client_of(runtime: Runtime) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(runtime)), base_url="http://service")


def with_parent(request: dict[str, Any], **trace: bool) -> dict[str, Any]:
    return {**request, "headers": {**request["headers"], **traceparent(**trace)}}


async def test_a_clip_from_http_to_its_batches(runtime: Runtime, spans: Spans) -> None:
    async with client_of(runtime) as client:
        answer = await client.post("/predict", **with_parent(as_json(clip(audio=20))))
    spans.wait_for("inference")
    assert spans.names() == sorted(
        ["POST /predict", "features", "queue", "inference", "batch", "batch", "prefill", "prefill"]
    )
    server = spans.one("POST /predict")
    assert parent(server) == (int(TRACE, 16), int(PARENT, 16))
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{server.context.span_id:016x}-01"
    assert server.attributes["http.route"] == "/predict"
    assert server.attributes["http.response.status_code"] == 200
    assert server.attributes["serpentine.request_id"] == answer.json()["id"] == answer.headers["x-request-id"]
    features, queue, inference = map(spans.one, ("features", "queue", "inference"))
    assert {parent(span) for span in (features, queue, inference)} == {place(server)}
    assert server.start_time <= features.start_time <= features.end_time <= queue.end_time == inference.start_time
    assert (inference.attributes["serpentine.model"], inference.attributes["serpentine.outcome"]) == (
        "tiny",
        "completed",
    )
    for batch, chunk, steps in zip(spans.named("batch"), spans.named("prefill"), (16, 4), strict=True):
        assert parent(batch) == parent(chunk) == place(inference)
        assert links(batch) == [place(inference)]
        assert links(chunk) == [place(batch)]
        assert batch.attributes["serpentine.steps"] == chunk.attributes["serpentine.steps"] == steps
        assert inference.start_time <= batch.start_time < batch.end_time <= inference.end_time
    assert spans.named("batch")[0].end_time - spans.named("batch")[0].start_time < 60e9


async def test_a_batch_links_to_every_request_in_it(runtime: Runtime, spans: Spans) -> None:
    gate = gate_model(runtime)
    async with client_of(runtime) as client:
        import asyncio

        first = asyncio.create_task(client.post("/predict", **as_json(clip(audio=2))))
        await asyncio.to_thread(gate.wait_reached)
        rest = [asyncio.create_task(client.post("/predict", **as_json(clip(i, audio=3)))) for i in range(2)]
        unseen = asyncio.create_task(client.post("/predict", **with_parent(as_json(clip(audio=3)), sampled=False)))
        await eventually(lambda: runtime.engine._inbox.qsize() == 3)
        gate.open()
        for task in (first, *rest, unseen):
            assert (await task).status_code == 200
    spans.wait_for("inference", 3)
    batch = spans.named("batch")[-1]
    assert batch.attributes["serpentine.sequences"] == 3
    assert batch.attributes["serpentine.steps"] == 9
    assert len(links(batch)) == 2
    assert set(links(batch)) == {place(span) for span in spans.named("inference")[1:]}
    assert parent(batch) == links(batch)[0]
    later = [span for span in spans.named("prefill") if links(span) == [place(batch)]]
    assert {parent(span) for span in later} == set(links(batch))
    assert {span.attributes["serpentine.steps"] for span in later} == {3}


async def test_tokens_that_are_decoded_one_after_the_other_are_one_span(runtime: Runtime, spans: Spans) -> None:
    body = {"prompt": "three plus four is", "max_tokens": 12, "mode": "text-only", "seed": 1}
    async with client_of(runtime) as client:
        answer = (await client.post("/generate", json=body)).json()
    spans.wait_for("inference")
    drawn = sum(answer["usage"]["completion_tokens"].values())
    decode = spans.one("decode")
    assert decode.attributes["serpentine.steps"] == drawn > 1
    (batch,) = (span for span in spans.named("batch") if place(span) in links(decode))
    assert batch.attributes["serpentine.batches"] == drawn
    took_ms = (batch.end_time - batch.start_time) / 1e6
    assert 0 < batch.attributes["serpentine.slowest_ms"] <= took_ms


async def test_a_trace_that_is_not_sampled_leaves_no_spans(runtime: Runtime, spans: Spans) -> None:
    async with client_of(runtime) as client:
        answer = await client.post("/predict", **with_parent(as_json(clip(audio=2)), sampled=False))
        await client.get("/livez")
        await client.get("/metrics", headers=traceparent())
    assert answer.headers["traceresponse"].startswith(f"00-{TRACE}-")
    assert answer.headers["traceresponse"].endswith("-00")
    assert spans.names() == []


async def test_a_model_that_raises_shows_in_every_span_above_it(
    runtime: Runtime, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(runtime.model("tiny").lane.runner, "run", broken)
    async with client_of(runtime) as client:
        answer = await client.post("/predict", **as_json(clip(audio=2)))
    assert answer.status_code == 500
    spans.wait_for("inference")
    server, inference = spans.one("POST /predict"), spans.one("inference")
    assert (server.status.status_code, server.attributes["error.type"]) == (StatusCode.ERROR, "500")
    assert (inference.status.status_code, inference.attributes["serpentine.outcome"]) == (StatusCode.ERROR, "failed")


async def test_what_is_refused_has_its_span_and_is_no_error_of_ours(runtime: Runtime, spans: Spans) -> None:
    async with client_of(runtime) as client:
        await client.post("/predict", **as_json(clip(audio=2), mood=1))
        await client.get("/nowhere")
    refused, unmatched = spans.one("POST /predict"), spans.one("GET unmatched")
    assert refused.attributes["http.response.status_code"] == 422
    assert refused.status.status_code == unmatched.status.status_code == StatusCode.UNSET


def test_messages_of_a_stream_are_traces_of_their_own(runtime: Runtime, spans: Spans) -> None:
    with serving(runtime) as url, streaming(url) as stream:
        stream.start()
        stream.frame(t=0.0, audio=clip(audio=12)["audio"])
        stream.end()
    socket = spans.one("WS /predict/stream")
    messages = spans.named("message of /predict/stream")
    assert [links(message) for message in messages] == [[place(socket)]] * 2
    assert [parent(message) for message in messages] == [None, None]
    assert len({message.context.trace_id for message in messages} | {socket.context.trace_id}) == 3
    within = spans.named("features") + spans.named("inference")
    assert within
    assert {parent(span) for span in within} <= set(map(place, messages))
    assert socket.attributes["http.response.status_code"] == 101


async def test_nothing_is_kept_of_requests_that_have_left(runtime: Runtime, spans: Spans) -> None:
    async with client_of(runtime) as client:
        for _ in range(3):
            await client.post("/predict", **as_json(clip(audio=40)))
            await client.post("/generate", json={"prompt": "three", "max_tokens": 5, "n": 2})
    spans.wait_for("inference", 6)
    for model in runtime.models.values():
        traces: Any = model.lane.traces
        assert (traces._inference, traces._latest) == ({}, None)


async def test_log_lines_name_their_trace(runtime: Runtime, spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    formatted: list[str] = []

    class Keep(JsonFormatter):
        def format(self, record: Any) -> str:
            formatted.append(super().format(record))
            return formatted[-1]

    caplog.handler.setFormatter(Keep())
    with caplog.at_level("INFO", "service.access"):
        async with client_of(runtime) as client:
            await client.post("/predict", **with_parent(as_json(clip(audio=2))))
    server = spans.one("POST /predict")
    (line,) = (line for line in formatted if '"service.access"' in line)
    assert f'"trace_id":"{TRACE}"' in line
    assert f'"span_id":"{server.context.span_id:016x}"' in line
