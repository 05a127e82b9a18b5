"""What the dashboard shows: rows of panels. A panel is a title, a unit, what it tells, and queries with their legends.

Rates are over Grafana's own interval.
"""

from __future__ import annotations

from dataclasses import dataclass

PROBES = 'endpoint!~"/livez|/readyz|/startupz|/health|/metrics|/models.*|/openapi.json|/docs.*|unmatched"'
AT = 'instance=~"$instance"'
OF = f'{AT}, model=~"$model"'


@dataclass(frozen=True)
class Panel:
    """stacked: the lines add up. figure: one number instead of lines."""

    title: str
    unit: str
    text: str
    queries: dict[str, str]
    stacked: bool = False
    figure: bool = False
    width: int = 8


def rate(name: str, labels: str, by: str) -> str:
    """Of a counter, a second."""
    return f"sum by ({by}) (rate(serpentine_{name}{{{labels}}}[$__rate_interval]))"


def quantiles(name: str, labels: str, by: str, *quantiles: float) -> dict[str, str]:
    """{legend: query} of a histogram."""
    buckets = rate(f"{name}_bucket", labels, f"le, {by}")
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))
    return {f"{legend} p{100 * q:g}": f"histogram_quantile({q}, {buckets})" for q in quantiles}


def mean(name: str, labels: str, by: str) -> str:
    """Of a histogram's values."""
    return f"{rate(f'{name}_sum', labels, by)} / {rate(f'{name}_count', labels, by)}"


def by_tier(name: str) -> dict[str, str]:
    """{legend: query} of a gauge whose tier `redis` is of all replicas together, and told by each of them."""
    own, shared = (f'serpentine_{name}{{{OF}, tier{is_}"redis"}}' for is_ in ("!=", "="))
    return {"{{model}} {{tier}}": f"sum by (model, tier) ({own}) or max by (model, tier) ({shared})"}


ROWS = {
    "Overview": (
        Panel("Replicas", "short", "That answer scrapes.", {"": 'sum(up{job="serpentine"})'}, figure=True, width=3),
        Panel("Engines", "short", "Whose thread lives.", {"": "sum(serpentine_engine_up)"}, figure=True, width=3),
        Panel(
            "Alerts",
            "short",
            "That fire now; Prometheus shows them at /alerts, docs/runbook.md explains them.",
            {"": 'count(ALERTS{alertname=~"Serpentine.*", alertstate="firing"}) or vector(0)'},
            figure=True,
            width=3,
        ),
        Panel(
            "Bad work in the last hour",
            "percentunit",
            "Share that failed or was refused; the objective allows .1 %.",
            {"": "max(job:serpentine_errors:ratio_rate1h)"},
            figure=True,
            width=3,
        ),
        Panel(
            "Slow work in the last hour",
            "percentunit",
            "Share over its threshold; the objective allows 1 %.",
            {"{{work}}": "max by (work) (job:serpentine_slow:ratio_rate1h)"},
            width=12,
        ),
        Panel(
            "Requests",
            "reqps",
            "Of routes that infer, by route.",
            {"{{endpoint}}": rate("request_duration_seconds_count", f"{AT}, {PROBES}", "endpoint")},
            stacked=True,
        ),
        Panel(
            "Answers",
            "reqps",
            "By status; 499 is a client that went away.",
            {"{{status}}": rate("request_duration_seconds_count", f"{AT}, {PROBES}", "status")},
            stacked=True,
        ),
        Panel(
            "Refused and failed",
            "reqps",
            "By code: refused (4xx, 503) and failed (500, 504), streams and lines of batches too.",
            {
                "refused: {{reason}}": rate("rejections_total", AT, "reason"),
                "failed: {{reason}}": rate("failures_total", AT, "reason"),
                "gone: {{phase}}": rate("cancellations_total", AT, "phase"),
            },
        ),
    ),
    "Latency by phase": (
        Panel(
            "Request",
            "s",
            "From arrival to the last byte.",
            quantiles("request_duration_seconds", f"{AT}, {PROBES}", "endpoint", 0.5, 0.99),
        ),
        Panel(
            "Queue",
            "s",
            "From admission to the first batch.",
            quantiles("queue_duration_seconds", OF, "model", 0.5, 0.99),
        ),
        Panel(
            "Features",
            "s",
            "Extraction of features, encoding of prompts.",
            quantiles("feature_duration_seconds", OF, "model", 0.5, 0.99),
        ),
        Panel("Inference", "s", "One batch.", quantiles("inference_duration_seconds", OF, "model, phase", 0.5, 0.99)),
        Panel("First token", "s", "From arrival.", quantiles("time_to_first_token_seconds", OF, "model", 0.5, 0.99)),
        Panel(
            "Between tokens", "s", "Of one answer.", quantiles("inter_token_duration_seconds", OF, "model", 0.5, 0.99)
        ),
    ),
    "Batching": (
        Panel(
            "Queue and slots",
            "short",
            "Requests that are prepared, wait for a slot, own one.",
            {
                "preparing": f"sum(serpentine_requests_preparing{{{AT}}})",
                "waiting {{model}}": f"sum by (model) (serpentine_requests_waiting{{{OF}}})",
                "running {{model}}": f"sum by (model) (serpentine_requests_running{{{OF}}})",
            },
        ),
        Panel(
            "Slots in use",
            "percentunit",
            "Of each model's pool.",
            {
                "{{model}}": f'sum by (model) (serpentine_state_slots{{{OF}, state="used"}})'
                f' / sum by (model) (serpentine_state_slots{{{OF}, state="total"}})'
            },
        ),
        Panel("Batches", "ops", "A second.", {"{{model}} {{phase}}": rate("batch_size_count", OF, "model, phase")}),
        Panel(
            "Sequences in a batch", "short", "Mean.", {"{{model}} {{phase}}": mean("batch_size", OF, "model, phase")}
        ),
        Panel("Steps in a batch", "short", "Mean.", {"{{model}} {{phase}}": mean("batch_steps", OF, "model, phase")}),
        Panel(
            "Time in batches",
            "percentunit",
            "Share of the engine thread's time, by model.",
            {"{{model}} {{phase}}": rate("inference_duration_seconds_sum", OF, "model, phase")},
            stacked=True,
        ),
    ),
    "Memory by kind": (
        Panel(
            "Host",
            "bytes",
            "Weights and states of the models there; the whole process.",
            {"{{kind}}": f"sum by (kind) (serpentine_memory_bytes{{{AT}}})"},
        ),
        Panel(
            "GPU",
            "bytes",
            "What models keep, what the allocator holds, what the device has.",
            {"{{device}} {{kind}}": f"sum by (device, kind) (serpentine_gpu_memory_bytes{{{AT}}})"},
        ),
        Panel(
            "GPU load",
            "percentunit",
            "Busy share.",
            {"{{device}}": f"avg by (device) (serpentine_gpu_utilization_ratio{{{AT}}})"},
        ),
    ),
    "Sessions": (
        Panel(
            "Sessions",
            "short",
            "Kept, by tier: copies in the memory of each process, and what they share in Redis.",
            by_tier("sessions"),
        ),
        Panel(
            "Streams", "short", "Sockets that are open.", {"{{model}}": f"sum by (model) (serpentine_streams{{{OF}}})"}
        ),
        Panel(
            "Messages of streams",
            "s",
            "From a message to the last of its answers.",
            quantiles("frame_duration_seconds", OF, "model", 0.5, 0.99),
        ),
        Panel(
            "States kept",
            "bytes",
            "Of sessions and of beginnings of prompts, and their limits.",
            {
                **by_tier("snapshot_bytes"),
                "limit: {{of}}": f'sum by (of) (serpentine_limit{{{AT}, of=~"session_bytes|prefix_cache_bytes"}})',
            },
        ),
        Panel(
            "Beginnings of prompts",
            "ops",
            "Found, or not and why.",
            {
                "hit": rate("snapshot_hits_total", OF, "tier"),
                "miss: {{reason}}": rate("snapshot_misses_total", OF, "reason"),
            },
            stacked=True,
        ),
        Panel(
            "Given up",
            "ops",
            "States evicted for want of room; steps that came too late; requests whose slots went to another API key.",
            {
                "evicted {{model}} {{tier}}": rate("snapshot_evictions_total", OF, "model, tier"),
                "late {{model}}": rate("late_steps_total", OF, "model"),
                "unseated {{model}}": rate("unseated_total", OF, "model"),
            },
        ),
    ),
    "Per model": (
        Panel(
            "Tokens",
            "ops",
            "Read and drawn, a second.",
            {"{{model}} {{modality}} {{direction}}": rate("tokens_total", OF, "model, modality, direction")},
        ),
        Panel(
            "Steps",
            "ops",
            "Of clips, a second.",
            {"{{model}} {{modality}}": rate("steps_total", OF, "model, modality")},
        ),
        Panel(
            "What is served",
            "short",
            "Replicas by model, backend and dtype; outputs that were not finite.",
            {
                "{{model}}: {{architecture}}, {{backend}}, {{dtype}}": (
                    f"count by (model, architecture, backend, dtype) (serpentine_model_info{{{OF}}})"
                ),
                "version {{version}}": f"count by (version) (serpentine_build_info{{{AT}}})",
                "not finite: {{phase}}": f"sum by (phase) (serpentine_nonfinite_outputs_total{{{AT}}})",
            },
        ),
    ),
}
