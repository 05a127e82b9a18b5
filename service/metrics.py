"""The Prometheus families of the service, on a registry of their own.

Each attribute is a family, named without the prefix `serpentine_`. The HTTP edge feeds `request_duration_seconds`,
`rejections_total` (answered with a 4xx or a 503) and `failures_total` (500, 504); the runtime and the engine the rest.

What is counted seldom, and watched, is there from the start with 0: `increase()` sees no first event otherwise.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client import Metric as Family

from service.errors import ServiceError
from service.gpu import GpuCollector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SHORT_SECONDS = (0.0001, 0.00025, 0.0005, *SECONDS)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
BATCH_STEPS = (1, 4, 16, 64, 256, 512, 1024, 2048, 4096, 8192)

PHASES = ("prefill", "decode", "step")
TIERS = ("device", "host", "redis")


def is_refusal(status: int) -> bool:
    """Whether an error of this status is counted as a rejection, and not as a failure."""
    return status < HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.SERVICE_UNAVAILABLE


class Metrics:
    """Counters, gauges and histograms of one service.

    Labels: `phase` of a batch is decode (tokens of answers only), step (one step of each clip) or prefill; `phase` of a
    cancellation is where it struck (queue, features, inference, or stream for a reader too slow); `direction` is input
    or output; `state` is used or total; `kind` of the host's memory is weights, state_pool or rss; `tier` is device,
    host or redis; `reason` of a miss is new, evicted, short (no token could be left out) or off; `of` a limit is the
    setting that sets it.
    """

    def __init__(self) -> None:
        self.registry = registry = _Registry()

        def histogram(name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"serpentine_{name}", text, labels, buckets=buckets, registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"serpentine_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...]) -> Gauge:
            return Gauge(f"serpentine_{name}", text, labels, registry=registry)

        self.request_duration_seconds = histogram(
            "request_duration_seconds",
            "From a request's arrival to its last byte.",
            ("endpoint", "status"),
            SECONDS,
        )
        self.queue_duration_seconds = histogram(
            "queue_duration_seconds", "From admission to the first batch.", ("model",), SHORT_SECONDS
        )
        self.feature_duration_seconds = histogram(
            "feature_duration_seconds", "Extraction of one request's features.", ("model",), SHORT_SECONDS
        )
        self.inference_duration_seconds = histogram(
            "inference_duration_seconds", "One batch on the device.", ("model", "phase"), SHORT_SECONDS
        )
        self.time_to_first_token_seconds = histogram(
            "time_to_first_token_seconds", "From a generation's arrival to its first token.", ("model",), SHORT_SECONDS
        )
        self.inter_token_duration_seconds = histogram(
            "inter_token_duration_seconds", "Between two tokens of one answer.", ("model",), SHORT_SECONDS
        )
        self.batch_size = histogram("batch_size", "Sequences in a batch.", ("model", "phase"), BATCH_SIZES)
        self.batch_steps = histogram("batch_steps", "Steps in a batch.", ("model", "phase"), BATCH_STEPS)
        self.steps_total = counter(
            "steps_total", "Steps of a modality read or produced.", ("model", "modality", "direction")
        )
        self.tokens_total = counter(
            "tokens_total", "Tokens read or drawn; sentinels are text.", ("model", "modality", "direction")
        )
        self.engine_up = gauge("engine_up", "Whether the engine's thread takes work.", ())
        self.limit = gauge("limit", "What this process takes at most.", ("of",))
        self.requests_preparing = gauge(
            "requests_preparing", "Requests whose features are extracted, or wait for a thread to do it.", ()
        )
        self.requests_running = gauge("requests_running", "Requests that own a slot.", ("model",))
        self.requests_waiting = gauge("requests_waiting", "Requests admitted and without a slot.", ("model",))
        self.state_slots = gauge("state_slots", "Rows of the state pool.", ("model", "state"))
        self.sessions = gauge("sessions", "Sessions that a tier keeps.", ("model", "tier"))
        self.snapshot_bytes = gauge(
            "snapshot_bytes", "States that are kept, counted by each that keeps them.", ("model", "tier")
        )
        self.snapshot_hits_total = counter(
            "snapshot_hits_total", "Prompts whose beginning was there.", ("model", "tier")
        )
        self.snapshot_misses_total = counter(
            "snapshot_misses_total", "Prompts whose beginning was not there.", ("model", "tier", "reason")
        )
        self.snapshot_evictions_total = counter(
            "snapshot_evictions_total", "States that were given up for lack of room.", ("model", "tier")
        )
        self.streams = gauge("streams", "Live sessions that a socket is open for.", ("model",))
        self.frame_duration_seconds = histogram(
            "frame_duration_seconds", "From a stream's message to the last of its answers.", ("model",), SHORT_SECONDS
        )
        self.unseated_total = counter(
            "unseated_total", "Requests whose slots were given to another key's, to go on later.", ("model",)
        )
        self.late_steps_total = counter("late_steps_total", "Steps of streams that came too late.", ("model",))
        self.rejections_total = counter("rejections_total", "Requests refused, by error code.", ("reason",))
        self.cancellations_total = counter(
            "cancellations_total", "Requests ended early: client gone, or out of time.", ("phase",)
        )
        self.failures_total = counter("failures_total", "Requests accepted and not answered, by code.", ("reason",))
        self.nonfinite_outputs_total = counter(
            "nonfinite_outputs_total", "Outputs of a model that were not finite.", ("phase",)
        )
        self.memory_bytes = gauge("memory_bytes", "Memory of the host.", ("kind",))
        self.gpu = GpuCollector()
        registry.register(self.gpu)
        self.model_info = Info("serpentine_model", "A model that is served.", ("model",), registry=registry)
        self.build_info = Info("serpentine_build", "What runs.", registry=registry)

        self.build_info.info({"version": version("serpentine"), "python": platform.python_version()})
        if _STATM.exists():  # Linux; elsewhere there is no cheap reading and the sample is left out
            self.memory_bytes.labels(kind="rss").set_function(_resident_bytes)
        for error in ServiceError.__subclasses__():
            (self.rejections_total if is_refusal(error.status) else self.failures_total).labels(error.code)
        for phase in ("queue", "features", "inference", "stream"):
            self.cancellations_total.labels(phase)
        self.nonfinite_outputs_total.labels("inference")

    def expect(self, model: str) -> None:
        """Let what is watched of a model be there before it happens."""
        for tier in TIERS:
            self.snapshot_evictions_total.labels(model, tier)
        self.late_steps_total.labels(model)
        self.unseated_total.labels(model)
        for phase in PHASES:
            self.inference_duration_seconds.labels(model, phase)


class _Registry(CollectorRegistry):
    """A registry without the `_created` gauges, which lengthen a scrape and tell nothing here."""

    def collect(self) -> Iterable[Family]:
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


_STATM = Path("/proc/self/statm")


def _resident_bytes() -> float:
    return float(int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
