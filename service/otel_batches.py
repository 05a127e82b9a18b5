"""Spans of batches and of the requests in them.

A request has a span `queue`, then a span `inference` with one span below it for each batch that it was in: `prefill`,
`step`, or `decode`. Batches that decode for the same requests one after the other are one span: a token is no news. A
batch is a span below the first request of it that is recorded, so that it is kept where that is, and links to all of
them; what a request did in it links back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, StatusCode, Tracer, set_span_in_context

from service.engine.request import Batch, Request
from service.tracing import BatchTraces


@dataclass
class _Run:
    """Batches of one phase and of the same requests. steps: of each request that is recorded."""

    phase: str
    requests: list[Request[Any]]
    sequences: int
    begun_s: float
    ended_s: float
    batches: int
    steps: int
    of: Counter[Request[Any]]
    slowest_s: float

    def goes_on(self, other: _Run) -> bool:
        """Whether another is more of the same."""
        return self.phase == other.phase == "decode" and self.requests == other.requests

    def add(self, other: _Run) -> None:
        """Take it in."""
        self.ended_s = other.ended_s
        self.batches += other.batches
        self.steps += other.steps
        self.of.update(other.of)
        self.slowest_s = max(self.slowest_s, other.slowest_s)


class OpenTelemetryBatches(BatchTraces):
    """Of one model. at: a time.monotonic() second as nanoseconds of the calendar."""

    def __init__(self, tracer: Tracer, at: Callable[[float], int], model: str) -> None:
        self.tracer, self.at, self.model = tracer, at, model
        self._inference: dict[Request[Any], Span] = {}
        self._latest: _Run | None = None

    def ran(self, batch: Batch, begun_s: float, ended_s: float) -> None:
        """See `BatchTraces`."""
        if not any(work.request.trace is not None for work in batch.works):
            return
        steps: Counter[Request[Any]] = Counter()
        for work in batch.works:
            if work.request.trace is not None:
                steps[work.request] += work.steps
        size, took_s = len(batch.works), ended_s - begun_s
        run = _Run(batch.phase, batch.requests, size, begun_s, ended_s, 1, batch.steps, steps, took_s)
        if self._latest is not None and self._latest.goes_on(run):
            self._latest.add(run)
            return
        self._flush()
        for request in steps:
            if request not in self._inference:
                self._begin(request)
        self._latest = run

    def retired(self, request: Request[Any], outcome: str) -> None:
        """See `BatchTraces`."""
        if request.trace is None:
            return
        if self._latest is not None and request in self._latest.of:
            self._flush()
        if request.started_s is not None and request not in self._inference:  # its first batch failed
            self._begin(request)
        span = self._inference.pop(request, None)
        if span is None:  # it never ran
            span = self.tracer.start_span("queue", request.trace, start_time=self.at(request.submitted_s))
        span.set_attribute("serpentine.outcome", outcome)
        if outcome in ("failed", "deadline"):
            span.set_status(StatusCode.ERROR)
        span.end()

    def _begin(self, request: Request[Any]) -> None:
        assert request.started_s is not None, "it runs"
        trace: Context = request.trace
        began, attributes = self.at(request.started_s), {"serpentine.model": self.model}
        queue = self.tracer.start_span("queue", trace, start_time=self.at(request.submitted_s), attributes=attributes)
        queue.end(began)
        self._inference[request] = self.tracer.start_span("inference", trace, start_time=began, attributes=attributes)

    def _flush(self) -> None:
        """Make the spans of what ran latest."""
        run, self._latest = self._latest, None
        if run is None:
            return
        within = {request: self._inference[request] for request in run.of}
        begun, ended = self.at(run.begun_s), self.at(run.ended_s)
        batch = self.tracer.start_span(
            "batch",
            set_span_in_context(next(iter(within.values())), Context()),
            start_time=begun,
            links=[Link(span.get_span_context()) for span in within.values()],
            attributes={
                "serpentine.model": self.model,
                "serpentine.phase": run.phase,
                "serpentine.sequences": run.sequences,
                "serpentine.steps": run.steps,
                "serpentine.batches": run.batches,
                "serpentine.slowest_ms": round(1000 * run.slowest_s, 3),
            },
        )
        batch.end(ended)
        for request, span in within.items():
            self.tracer.start_span(
                run.phase,
                set_span_in_context(span, Context()),
                start_time=begun,
                links=[Link(batch.get_span_context())],
                attributes={"serpentine.steps": run.of[request]},
            ).end(ended)
