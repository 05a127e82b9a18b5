"""Prometheus's rules: valid, tried on both sides of each alert, each alert with its entry in the runbook."""

from __future__ import annotations

import re
import subprocess

import pytest

from service.metrics import SECONDS
from tests.api.test_metrics import DOCUMENTED
from tests.monitoring.files import NEEDED, PROMETHEUS, ROOT, anchors, cases, rules

ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def promtool(*words: str) -> None:
    done = subprocess.run(["promtool", *words], cwd=PROMETHEUS, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


@NEEDED
def test_the_configuration_and_the_rules_are_valid() -> None:
    promtool("check", "config", "prometheus.yml")


@NEEDED
@pytest.mark.parametrize("file", ["alerts.yml", "hours.yml"])
def test_alerts_fire_and_are_quiet_as_their_cases_say(file: str) -> None:
    promtool("test", "rules", f"tests/{file}")


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_firing_and_a_quiet_case(alert: str) -> None:
    assert {fires for name, fires in cases() if name == alert} == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_says_how_urgent_it_is_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("page", "ticket")
    page, anchor = rule["annotations"]["runbook_url"].split("#")
    assert anchor == alert.lower()
    assert anchor in anchors(ROOT / page)


@pytest.mark.parametrize("page", ["docs/runbook.md"])
def test_links_within_the_runbook_lead_somewhere(page: str) -> None:
    links = set(re.findall(r"\]\(#([^)]+)\)", (ROOT / page).read_text()))
    assert links <= anchors(ROOT / page)


def test_rules_read_families_that_there_are() -> None:
    for rule in rules():
        for name in re.findall(r"(?<!:)\bserpentine_([a-z_]+)\b(?!:)", rule["expr"]):
            assert re.sub("_(bucket|count|sum)$", "", name) in DOCUMENTED or name in DOCUMENTED, name


def test_the_runbook_names_settings_that_there_are() -> None:
    from service.settings import PREFIX, Settings

    names = set(re.findall(rf"{PREFIX}([A-Z_]+)\b", (ROOT / "docs" / "runbook.md").read_text()))
    assert {name.lower() for name in names} <= set(Settings.model_fields)


def test_thresholds_of_latency_are_borders_of_buckets() -> None:
    borders = {border for rule in rules() for border in re.findall(r'le="([^"]+)"', rule["expr"])}
    assert borders
    assert borders <= {str(border) for border in SECONDS}
