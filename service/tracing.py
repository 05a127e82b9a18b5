"""Spans of a request's way through the service: what is asked of whoever makes them, and the default, which makes none.

HTTP request -> features -> queue -> inference -> prefill, decode or step
                                        ^---------- batch, which links to the requests in it

`start_tracing` gives `service.otel.OpenTelemetryTracing` where OpenTelemetry's own variables ask for traces. Without
them nothing of OpenTelemetry is imported, and what is left of it is a call that does nothing at each place.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.engine.request import Batch, Request

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTERS = ("otlp", "console")
PROTOCOL = "http/protobuf"


class TracingError(ValueError):
    """Traces are asked for and cannot be had; its text says why."""


class Served:
    """A request from outside. traceresponse: its place in a trace, for the client; None: it has none."""

    traceresponse: str | None = None

    def name(self, attributes: Mapping[str, Any]) -> None:
        """Say more of it."""

    def answered(self, route: str, status: int) -> None:
        """Its answer ended with this status."""


class BatchTraces:
    """What a model's batches are told to. Used by the engine's thread alone."""

    def ran(self, batch: Batch, begun_s: float, ended_s: float) -> None:
        """A batch ran, in time.monotonic() seconds."""

    def retired(self, request: Request[Any], outcome: str) -> None:
        """A request has left: completed, failed, cancelled or deadline."""


class Tracing:
    """Makes no spans.

    A trace, as `current` gives it, is an opaque value: where in which trace the work of a request belongs. None stands
    for a request that is not recorded.
    """

    on = False

    def serving(self, scope: Mapping[str, Any]) -> AbstractContextManager[Served]:
        """Around a request or a socket, of an ASGI scope; `current` tells of it within."""
        return _UNSEEN

    def message(self, name: str) -> AbstractContextManager[None]:
        """Around one message of a socket: a trace of its own, linked to the socket's."""
        return _NOTHING

    def current(self) -> Any:
        """The trace of the request that is at work here."""
        return None

    def record(self, trace: Any, name: str, begun_s: float, ended_s: float) -> None:
        """A span that is over, of a trace, in time.monotonic() seconds."""

    def names(self, trace: Any) -> dict[str, str]:
        """What a log line says of a trace."""
        return {}

    def batches(self, model: str) -> BatchTraces:
        """For the batches of a model."""
        return BatchTraces()

    def close(self) -> None:
        """Send what is left."""


_UNSEEN = nullcontext(Served())
_NOTHING = nullcontext()


def start_tracing(environment: Mapping[str, str]) -> Tracing:
    """Traces as the variables OTEL_* say. Raises TracingError where they ask for what is not here."""
    exporter = environment.get("OTEL_TRACES_EXPORTER") or ("otlp" if any(map(environment.get, ENDPOINTS)) else "none")
    if exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Tracing()
    if exporter not in EXPORTERS:
        raise TracingError(f"OTEL_TRACES_EXPORTER: one of {', '.join(EXPORTERS)}, none; not {exporter!r}")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environment.get(name, PROTOCOL) not in ("", PROTOCOL):
            raise TracingError(f"{name}: traces are sent as {PROTOCOL}, not as {environment[name]!r}")
    try:
        from service.otel import make_tracing
    except ModuleNotFoundError as error:  # Ray brings a part of it along
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise TracingError("traces need the extra `otel`: pip install 'serpentine[otel]'") from None
    return make_tracing(exporter, environment)
