"""Grafana's dashboard: made of the code, whole, and provisioned from where it lies."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.api.test_metrics import DOCUMENTED
from tests.monitoring.files import DASHBOARD, GRAFANA, panels


def board() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def test_the_file_is_what_the_code_makes() -> None:
    made = subprocess.run([sys.executable, GRAFANA / "make_dashboard.py"], capture_output=True, text=True, check=True)
    assert made.stdout == DASHBOARD.read_text(), "run: make dashboard"


def test_grafanas_own_types_read_it() -> None:
    read = Dashboard.from_json(board())
    assert (read.uid, read.title) == ("serpentine", "Serpentine")
    assert len(read.panels or []) == len(board()["panels"])


def test_rows_are_those_that_an_operator_looks_for() -> None:
    rows = [panel["title"] for panel in board()["panels"] if panel["type"] == "row"]
    assert rows == ["Overview", "Latency by phase", "Batching", "Memory by kind", "Sessions", "Per model"]


def test_panels_have_numbers_places_and_words_of_their_own() -> None:
    every = board()["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    cells = [
        (x, y)
        for panel in every
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_every_family_is_on_it() -> None:
    """What is counted and never looked at is not worth counting."""
    seen = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    for name, (kind, _) in DOCUMENTED.items():
        assert re.search(rf"\bserpentine_{name}", seen), (name, kind)


def test_what_it_names_is_provisioned() -> None:
    folder = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    named = {panel["datasource"]["uid"] for panel in panels()}
    named |= {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]}
    named |= {variable["datasource"]["uid"] for variable in board()["templating"]["list"]}
    assert named == {source["uid"]}
    (provider,) = yaml.safe_load((folder / "dashboards" / "serpentine.yml").read_text())["providers"]
    assert provider["options"]["path"].endswith(f"/{DASHBOARD.parent.name}")
