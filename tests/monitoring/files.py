"""What an operator is given: Prometheus's rules and Grafana's dashboard, as data."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "monitoring" / "prometheus"
GRAFANA = ROOT / "deploy" / "monitoring" / "grafana"
DASHBOARD = GRAFANA / "dashboards" / "serpentine.json"
NEEDED = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="the binaries prometheus and promtool are not on the PATH (Debian: apt-get install prometheus)",
)


def rules() -> Iterator[dict[str, Any]]:
    """Every recording and alert rule."""
    for file in sorted((PROMETHEUS / "rules").glob("*.yml")):
        for group in yaml.safe_load(file.read_text())["groups"]:
            yield from group["rules"]


def panels() -> Iterator[dict[str, Any]]:
    """Every panel of the dashboard that has queries."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] != "row":
            yield panel


def cases() -> Iterator[tuple[str, bool]]:
    """(alert, whether it fires) of every case of `promtool test rules`."""
    for file in sorted((PROMETHEUS / "tests").glob("*.yml")):
        for test in yaml.safe_load(file.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                yield case["alertname"], bool(case["exp_alerts"])


def anchors(page: Path) -> set[str]:
    """Those of a page's headings, as a forge makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
