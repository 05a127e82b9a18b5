"""Several replicas' metrics on one page."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.cluster.exposition import merged


def page(count: int) -> str:
    registry = CollectorRegistry()
    Counter("rejections", "Refused.", ["reason"], registry=registry).labels("overloaded").inc(count)
    Histogram("seconds", "Took.", buckets=(1, 2), registry=registry).observe(count)
    Info("build", "What runs.", registry=registry).info({"version": "1"})
    return generate_latest(registry).decode()


def test_each_replica_keeps_its_samples_under_one_head() -> None:
    text = merged([page(1), page(2)]).decode()
    assert text.count("# TYPE rejections_total counter") == 1
    families = {family.name: family for family in text_string_to_metric_families(text)}
    values = {(s.name, s.labels["replica"]): s.value for s in families["rejections"].samples}
    assert values["rejections_total", "0"] == 1
    assert values["rejections_total", "1"] == 2
    counts = {s.labels["replica"]: s.value for s in families["seconds"].samples if s.name == "seconds_count"}
    assert counts == {"0": 1, "1": 1}
