"""docker/compose.yaml brought up: the image under test, Redis, Prometheus and, where it can be had, Grafana.

Where no registry answers, Debian's Redis and Prometheus stand in (stand-ins.Dockerfile), and Grafana is left out.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Generator
from typing import Any

import httpx
import pytest

from tests.deploy.test_compose import FILE, configured
from tests.deploy.tools import program

pytestmark = pytest.mark.timeout(600)

PORTS = {"SERPENTINE_HOST_PORT": "18080", "PROMETHEUS_HOST_PORT": "19090", "GRAFANA_HOST_PORT": "13000"}
SERVICE, PROMETHEUS, GRAFANA = (f"http://127.0.0.1:{port}" for port in PORTS.values())
STAND_INS = "serpentine-stand-ins"


def there(image: str) -> bool:
    """Whether an image is here, or a registry gives it."""
    found = subprocess.run(["docker", "image", "inspect", image], capture_output=True)
    return found.returncode == 0 or subprocess.run(["docker", "pull", "-q", image], capture_output=True).returncode == 0


class Stack:
    """The compose file's services, as a project of their own."""

    def __init__(self, image: str) -> None:
        named = {name: service["image"] for name, service in configured().items()}
        self.real = all(there(named[name]) for name in ("redis", "prometheus", "grafana"))
        self.environment = {**os.environ, **PORTS, "SERPENTINE_IMAGE": image}
        self.services = ["serpentine", "redis", "prometheus"]
        if self.real:
            self.services.append("grafana")
        else:
            build = ["docker", "build", "-q", "--network=host", f"--tag={STAND_INS}"]
            self.environment |= {"REDIS_IMAGE": STAND_INS, "PROMETHEUS_IMAGE": STAND_INS, "DOCKER_BUILDKIT": "1"}
            self._run(*build, f"--file={FILE.parent / 'stand-ins.Dockerfile'}", str(FILE.parent))

    def _run(self, *words: str) -> None:
        done = subprocess.run(words, capture_output=True, text=True, env=self.environment, timeout=300)
        assert done.returncode == 0, done.stderr

    def compose(self, *words: str) -> None:
        """Run Compose on the project."""
        self._run(program("docker-compose"), f"--file={FILE}", "--project-name=serpentine-test", *words)

    def up(self) -> None:
        """Start what is not running, and wait for the service."""
        self.compose("up", "--detach", "--no-build", *self.services)
        until(lambda: httpx.get(f"{SERVICE}/readyz", verify=False).status_code == 200)


def until(holds: Callable[[], bool], limit_s: float = 120) -> None:
    """Wait for something to hold; while it cannot be asked it does not."""
    end = time.monotonic() + limit_s
    while True:
        try:
            if holds():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def stack(image: str) -> Generator[Stack, None, None]:
    """The services, up, and gone at the end with what they kept."""
    stack = Stack(image)
    try:
        stack.up()
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout=10")


def asked(path: str) -> dict[str, Any]:
    """What Prometheus answers."""
    found: dict[str, Any] = httpx.get(f"{PROMETHEUS}/api/v1/{path}", verify=False).json()["data"]
    return found


def test_a_session_outlives_the_service(stack: Stack) -> None:
    def steps(session: str, words: str) -> dict[str, Any]:
        clip = {"media": {"text": words}}
        response = httpx.post(f"{SERVICE}/sessions/{session}/steps", json=clip, timeout=60, verify=False)
        assert response.status_code == 200, response.text
        return response.json()  # type: ignore[no-any-return]

    made = httpx.post(f"{SERVICE}/sessions", json={}, timeout=60, verify=False)
    assert made.status_code in (200, 201), made.text
    session = made.json()["id"]
    steps(session, "It began badly,")
    stack.compose("rm", "--stop", "--force", "serpentine")
    stack.up()
    kept = httpx.get(f"{SERVICE}/sessions/{session}", verify=False)
    assert kept.status_code == 200, kept.text
    before = kept.json()["steps"]
    assert before > 0
    steps(session, "and then I loved it.")
    assert httpx.get(f"{SERVICE}/sessions/{session}", verify=False).json()["steps"] > before


def test_prometheus_scrapes_the_service_and_has_its_rules(stack: Stack) -> None:
    def scraped() -> bool:
        targets = asked("targets?state=active")["activeTargets"]
        return [t["health"] for t in targets if t["labels"]["job"] == "serpentine"] == ["up"]

    until(scraped)
    until(lambda: bool(asked("query?query=serpentine_requests_waiting")["result"]))
    rules = [rule for group in asked("rules")["groups"] for rule in group["rules"]]
    assert rules
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}


def test_grafana_has_the_dashboard(stack: Stack) -> None:
    if not stack.real:
        pytest.skip("Grafana's image cannot be had: no registry answers")
    until(lambda: httpx.get(f"{GRAFANA}/api/health", verify=False).status_code == 200)
    found = httpx.get(f"{GRAFANA}/api/search?query=Serpentine", verify=False).json()
    assert [entry["title"] for entry in found] == ["Serpentine"]
