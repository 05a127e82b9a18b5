"""Spans that a test keeps, and questions to them."""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from service.otel import OpenTelemetryTracing


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # what it is a part of
        return False


NEEDED = pytest.mark.skipif(
    not _there("opentelemetry.sdk") or not _there("opentelemetry.exporter.otlp.proto.http"),
    reason="OpenTelemetry's SDK and exporter, the extra `otel`, are not installed",
)

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def traceparent(*, sampled: bool = True) -> dict[str, str]:
    return {"traceparent": f"00-{TRACE}-{PARENT}-0{int(sampled)}"}


class Spans:
    """Of a provider that keeps them in memory. A span is there once it has ended."""

    def __init__(self) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        from service.otel import OpenTelemetryTracing

        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing: OpenTelemetryTracing = OpenTelemetryTracing(provider)

    def named(self, name: str) -> list[Any]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def names(self) -> list[str]:
        return sorted(span.name for span in self._exporter.get_finished_spans())

    def one(self, name: str) -> Any:
        (span,) = self.named(name)
        return span

    def wait_for(self, name: str, count: int = 1) -> None:
        """The engine ends its spans after it has answered."""
        limit = time.monotonic() + 30
        while len(self.named(name)) < count:
            assert time.monotonic() < limit, (name, self.names())
            time.sleep(0.01)


def place(span: Any) -> tuple[int, int]:
    """(trace, span)"""
    return span.context.trace_id, span.context.span_id


def parent(span: Any) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def links(span: Any) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]
