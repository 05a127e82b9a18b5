"""Traces with OpenTelemetry (the extra `otel`). Imported by `service.tracing.start_tracing` alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, get_current_span, set_span_in_context

from service.logs import trace_names
from service.otel_batches import OpenTelemetryBatches
from service.tracing import BatchTraces, Served, Tracing

UNTRACED = frozenset({"/livez", "/readyz", "/startupz", "/health", "/metrics"})


class OpenTelemetryTracing(Tracing):
    """Spans of a provider, which it owns."""

    on = True

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self.tracer = provider.get_tracer("serpentine", version("serpentine"))
        self._epoch_ns = time.time_ns() - time.monotonic_ns()

    @contextmanager
    def serving(self, scope: Mapping[str, Any]) -> Iterator[Served]:
        """See `Tracing`. Goes on from the W3C context of the request's headers; probes and scrapes are not traced."""
        if scope["path"] in UNTRACED:
            yield Served()
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method = scope.get("method", "WS")
        attributes = {
            "http.request.method": scope.get("method", "GET"),
            "url.path": scope["path"],
            "url.scheme": scope.get("scheme", "http"),
            "network.protocol.version": scope.get("http_version", ""),
            "user_agent.original": headers.get("user-agent", ""),
        }
        span = self.tracer.start_span(method, propagate.extract(headers), SpanKind.SERVER, attributes)
        with self._within(span):
            try:
                yield _Served(span, method)
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    @contextmanager
    def message(self, name: str) -> Iterator[None]:
        """See `Tracing`."""
        links = [Link(get_current_span().get_span_context())]
        with self._within(self.tracer.start_span(name, Context(), SpanKind.SERVER, links=links)):
            yield

    def current(self) -> Context | None:
        """See `Tracing`."""
        span = get_current_span()
        return set_span_in_context(span, Context()) if span.is_recording() else None

    def record(self, trace: Context | None, name: str, begun_s: float, ended_s: float) -> None:
        """See `Tracing`."""
        if trace is not None:
            self.tracer.start_span(name, trace, start_time=self.at(begun_s)).end(self.at(ended_s))

    def names(self, trace: Context | None) -> dict[str, str]:
        """See `Tracing`."""
        return {} if trace is None else _names(get_current_span(trace))

    def batches(self, model: str) -> BatchTraces:
        """See `Tracing`."""
        return OpenTelemetryBatches(self.tracer, self.at, model)

    def close(self) -> None:
        """See `Tracing`."""
        self.provider.shutdown()

    def at(self, monotonic_s: float) -> int:
        """A time.monotonic() second as nanoseconds of the calendar."""
        return self._epoch_ns + int(1e9 * monotonic_s)

    @contextmanager
    def _within(self, span: Span) -> Iterator[None]:
        """The span is current, and named in the logs; then it ends."""
        token = contexts.attach(set_span_in_context(span))
        named = trace_names.set(_names(span))
        try:
            yield
        finally:
            trace_names.reset(named)
            contexts.detach(token)
            span.end()


class _Served(Served):
    def __init__(self, span: Span, method: str) -> None:
        self._span, self._method = span, method
        place = span.get_span_context()
        self.traceresponse = f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"

    def name(self, attributes: Mapping[str, Any]) -> None:
        self._span.set_attributes(dict(attributes))

    def answered(self, route: str, status: int) -> None:
        self._span.update_name(f"{self._method} {route}")
        self._span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(StatusCode.ERROR)


def _names(span: Span) -> dict[str, str]:
    place = span.get_span_context()
    return {"trace_id": f"{place.trace_id:032x}", "span_id": f"{place.span_id:016x}"}


def make_tracing(exporter: str, environment: Mapping[str, str]) -> OpenTelemetryTracing:
    """As OpenTelemetry's variables say: its libraries read those of the sampler, the exporter and the resource."""
    named = environment.get("OTEL_SERVICE_NAME") or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    about = {SERVICE_VERSION: version("serpentine"), **({} if named else {SERVICE_NAME: "serpentine"})}
    provider = TracerProvider(resource=Resource.create(about))
    sink = OTLPSpanExporter() if exporter == "otlp" else ConsoleSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(sink))
    return OpenTelemetryTracing(provider)
