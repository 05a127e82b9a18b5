"""Whether there are traces, where they go, and what it is to have none: OpenTelemetry's own variables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.tracing import Tracing, TracingError, start_tracing
from tests.api.bodies import as_json, clip
from tests.api.process import Process
from tests.tracing.collector import collector
from tests.tracing.spans import NEEDED, TRACE, traceparent

ASKED = {"OTEL_TRACES_EXPORTER": "otlp"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "mine"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
        {**ASKED, "OTEL_SDK_DISABLED": "TRUE"},
    ],
)
def test_nobody_asks_for_traces(environment: dict[str, str]) -> None:
    assert type(start_tracing(environment)) is Tracing


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: one of otlp, console, none; not 'zipkin'"),
        ({**ASKED, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "sent as http/protobuf, not as 'grpc'"),
    ],
)
def test_what_cannot_be_had_fails_at_start(environment: dict[str, str], fault: str) -> None:
    with pytest.raises(TracingError, match=fault):
        start_tracing(environment)


@pytest.mark.parametrize("missing", ["sdk.resources", "exporter.otlp.proto.http.trace_exporter"])
def test_without_the_extra_or_with_a_part_of_it(
    missing: str, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, capsys: Any
) -> None:
    from service.cli import main

    monkeypatch.delitem(sys.modules, "service.otel", raising=False)
    monkeypatch.setitem(sys.modules, f"opentelemetry.{missing}", None)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    assert main(["serve", "--model", str(tiny_checkpoint), "--port", "0"]) == 2
    assert "the extra `otel`" in capsys.readouterr().err


def test_where_there_are_none_nothing_is_imported() -> None:
    program = """if True:
        import sys
        import service.commands.serve
        from service.tracing import start_tracing
        start_tracing({})
        beginnings = ("service.otel", "opentelemetry.sdk", "opentelemetry.exporter", "google.protobuf")
        print([name for name in sys.modules if name.startswith(beginnings)])
    """
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


@NEEDED
def test_spans_reach_a_collector(tiny_checkpoint: Path) -> None:
    with collector() as received:
        process = Process(
            tiny_checkpoint,
            OTEL_EXPORTER_OTLP_ENDPOINT=received.url,
            OTEL_EXPORTER_OTLP_HEADERS="api-key=secret",
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment=test",
            OTEL_BSP_SCHEDULE_DELAY="60000",  # what is there is sent at the end
        )
        request = as_json(clip(audio=4))
        answer = httpx.post(
            f"{process.url}/predict", content=request["content"], headers=request["headers"] | traceparent()
        )
        assert answer.headers["traceresponse"].startswith(f"00-{TRACE}-")
        process.popen.send_signal(signal.SIGTERM)
        status, logs = process.end()
    assert status == 0
    assert f'"trace_id":"{TRACE}"' in logs
    assert {span.name for span in received.spans()} == {
        *("POST /predict", "features", "queue", "inference", "batch", "prefill")
    }
    assert {span.trace_id.hex() for span in received.spans()} == {TRACE}
    (resource,) = received.resources()
    assert resource["service.name"] == "serpentine"
    assert resource["deployment.environment"] == "test"
    assert received.headers["api-key"] == "secret"


@NEEDED
def test_a_sampler_and_a_name_of_the_operators_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{received.url}/v1/traces")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        tracing = start_tracing(os.environ)
        for headers in ({}, traceparent()):
            encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
            with tracing.serving({"path": "/predict", "method": "POST", "headers": encoded}):
                pass
        tracing.close()
    assert {span.trace_id.hex() for span in received.spans()} == {TRACE}
    assert {resource["service.name"] for resource in received.resources()} == {"mine"}


@NEEDED
def test_a_collector_that_is_not_there_holds_nothing_up(tiny_checkpoint: Path) -> None:
    process = Process(tiny_checkpoint, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_EXPORTER_OTLP_TIMEOUT="1")
    assert httpx.post(f"{process.url}/predict", **as_json(clip(audio=4))).status_code == 200
    begun = time.monotonic()
    process.popen.send_signal(signal.SIGTERM)
    assert process.end()[0] == 0
    assert time.monotonic() - begun < 20
