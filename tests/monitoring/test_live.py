"""Every expression of the dashboard and of the rules, asked of a real Prometheus that scraped a real service."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import start_http_server

from service.metrics import Metrics
from tests.api.process import Process
from tests.monitoring.files import NEEDED, panels, rules
from tests.monitoring.server import SCRAPE_S, Prometheus, prometheus
from tests.monitoring.traffic import send
from tests.trio import build_trio

pytestmark = NEEDED

VARIABLES = {"$__rate_interval": "1m", "$instance": ".*", "$model": ".*"}


@pytest.fixture(scope="module")
def scraped(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Prometheus, None, None]:
    """What a Prometheus knows after the same traffic, twice, with scrapes before, between and after."""
    trio = build_trio(tmp_path_factory.mktemp("checkpoints") / "trio")
    service = Process(tiny_checkpoint, trio)
    try:
        with prometheus(service.url.removeprefix("http://")) as server:
            server.until('up{job="serpentine"} == 1')
            for _ in range(2):
                send(service.url)
                time.sleep(3 * SCRAPE_S)
            server.until("job:serpentine_slow:ratio_rate6h{work='frame'} >= 0")
            yield server
    finally:
        service.popen.kill()
        service.popen.communicate()


def queries() -> list[tuple[str, str]]:
    """(panel, expression), as Grafana would send it."""
    found = []
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            assert "$" not in expression, f"{panel['title']}: a variable that this test does not know"
            found.append((panel["title"], expression))
    return found


def test_no_panel_is_in_error_or_empty(scraped: Prometheus) -> None:
    """But for those of GPUs, on a machine without one."""
    values = {(panel, expression): scraped.query(expression) for panel, expression in queries()}
    needed = {asked: got for asked, got in values.items() if "serpentine_gpu_" not in asked[1]}
    assert len(needed) > 30
    assert [asked for asked, got in needed.items() if not any(map(math.isfinite, got))] == []


def test_what_replicas_share_in_redis_is_shown_once() -> None:
    """And what each has in its own memory adds up."""
    with ExitStack() as stack:
        targets = []
        for own in (2, 3):
            metrics = Metrics()
            for gauge in (metrics.sessions, metrics.snapshot_bytes):
                gauge.labels("m", "host").set(own)
                gauge.labels("m", "redis").set(40)
            server, thread = start_http_server(0, "127.0.0.1", metrics.registry)
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            targets.append(f"127.0.0.1:{server.server_port}")
        scraping = stack.enter_context(prometheus(*targets))
        scraping.until("count(serpentine_sessions) == 4")
        asked = [query for _, query in queries() if re.search("serpentine_(sessions|snapshot_bytes)", query)]
        assert [sorted(scraping.query(query)) for query in asked] == [[5, 40]] * 2


def test_the_dashboards_variables_have_values(scraped: Prometheus) -> None:
    assert len(scraped.query("group by (instance) (serpentine_engine_up)")) == 1
    assert len(scraped.query("group by (model) (serpentine_state_slots)")) == 2


def test_no_rule_is_in_error_and_all_that_is_recorded_is_there(scraped: Prometheus) -> None:
    values = [(rule, scraped.query(rule["expr"])) for rule in rules()]
    empty = [rule for rule, got in values if "record" in rule and not any(map(math.isfinite, got))]
    assert empty == []


def test_prometheus_evaluates_the_rules_as_they_are(scraped: Prometheus) -> None:
    groups = scraped.ask("rules")["groups"]
    evaluated = [rule for group in groups for rule in group["rules"]]
    assert len(evaluated) == len(list(rules()))
    assert {(rule["name"], rule["health"], rule.get("lastError", "")) for rule in evaluated} == {
        (rule.get("alert") or rule["record"], "ok", "") for rule in rules()
    }


def test_a_service_that_is_well_wakes_nobody(scraped: Prometheus) -> None:
    assert scraped.query('ALERTS{alertstate="firing"}') == []


def test_the_scrape_has_no_warning(scraped: Prometheus) -> None:
    (target,) = scraped.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


def test_metadata_of_every_family_arrives(scraped: Prometheus) -> None:
    described = scraped.ask("metadata")
    assert {entry["type"] for entry in described["serpentine_batch_size"]} == {"histogram"}
    assert all(re.search(r"\w", entry["help"]) for name in described for entry in described[name])
