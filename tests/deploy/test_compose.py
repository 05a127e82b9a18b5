"""docker/compose.yaml: valid by Compose's own reading, and at one with the monitoring that it mounts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.api.server import LAST_WORDS_S
from service.settings import PREFIX, Settings
from tests.deploy.tools import ROOT, program

FILE = ROOT / "docker" / "compose.yaml"
PROFILES = {"cpu": "serpentine", "gpu": "serpentine-gpu"}


def compose(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Docker Compose on the file."""
    return subprocess.run(
        [program("docker-compose"), "--file", str(FILE), *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )


def configured(*words: str, **environment: str) -> dict[str, Any]:
    """What Compose makes of the file, by service."""
    done = compose(*words, "config", "--format", "json", **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


def test_the_profile_is_the_cpus_where_none_is_named() -> None:
    assert set(configured()) == {"serpentine", "redis", "prometheus", "grafana"}
    gpu = {"serpentine-gpu", "gpu-exporter", "redis", "prometheus", "grafana"}
    assert set(configured("--profile", "gpu")) == gpu
    assert set(configured(COMPOSE_PROFILES="gpu")) == gpu


def test_an_unknown_key_would_be_noticed(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text("services: {redis: {image: redis, read_onyl: true}}")
    done = subprocess.run([program("docker-compose"), "-f", str(wrong), "config"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "read_onyl" in done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_every_service_is_locked_up_and_open_to_this_machine_alone(profile: str) -> None:
    for name, service in configured("--profile", profile).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name


@pytest.mark.parametrize("profile", PROFILES)
def test_the_service_gets_settings_that_there_are_and_time_to_drain(profile: str) -> None:
    service = configured("--profile", profile)[PROFILES[profile]]
    settings = {name: value for name, value in service["environment"].items() if name.startswith(PREFIX)}
    assert settings.keys() <= {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert service["stop_grace_period"] == "45s"
    assert Settings.model_fields["drain_s"].default + LAST_WORDS_S < 45


def test_a_gpu_is_reserved_and_the_names_that_prometheus_scrapes_lead_somewhere() -> None:
    services = configured("--profile", "gpu")
    for name in ("serpentine-gpu", "gpu-exporter"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        assert device["capabilities"] == ["gpu"]
    names = set(services) | set(services["serpentine-gpu"]["networks"]["default"]["aliases"])
    scraped = yaml.safe_load((ROOT / "deploy/monitoring/prometheus/prometheus.yml").read_text())["scrape_configs"]
    wanted = {name for job in scraped for found in job.get("dns_sd_configs", []) for name in found["names"]}
    assert wanted == {"serpentine", "gpu-exporter"}
    assert wanted <= names


def test_what_is_mounted_is_there() -> None:
    for service in configured().values():
        for volume in service.get("volumes", []):
            assert volume["type"] == "volume" or Path(volume["source"]).is_dir()
