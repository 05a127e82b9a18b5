"""An image does what docs/operations.md says. `make image-test` builds it and runs these against containers of it."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Container, docker

from service import __version__

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "tests" / "media" / "digits.wav"
WORDS = "I absolutely loved this film, every minute of it."
SUM = {"prompt": "three plus four is", "seed": 7, "temperature": 0}
OWN = {"id", "timing_ms"}  # of one answer, not of what was asked

MAX_BYTES = 2_000_000_000
MAX_BYTES_FOR_GPUS = 7_000_000_000  # CUDA's libraries are two thirds of it
READY_S = 10.0


def predict(url: str, words: str = WORDS) -> httpx.Response:
    """Sentiment of words and a recording."""
    return httpx.post(
        f"{url}/predict", data={"text": words}, files={"audio": DIGITS.read_bytes()}, timeout=60, verify=False
    )


def generate(url: str) -> httpx.Response:
    """A sum, answered with a word, a picture and a recording."""
    return httpx.post(f"{url}/generate", json=SUM, timeout=60, verify=False)


def content(response: httpx.Response) -> dict[str, Any]:
    """An answer without what differs from call to call."""
    assert response.status_code == 200, response.text
    return {name: value for name, value in response.json().items() if name not in OWN}


@pytest.mark.parametrize("ask", [predict, generate])
def test_the_answer_is_the_hosts_to_the_bit(ask: Callable[[str], httpx.Response], served: Container, host: str) -> None:
    assert content(ask(served.url)) == content(ask(host))


def test_metrics_count_what_was_asked(served: Container) -> None:
    before = httpx.get(f"{served.url}/metrics").text.splitlines()
    predict(served.url)
    after = httpx.get(f"{served.url}/metrics").text.splitlines()
    line = 'serpentine_request_duration_seconds_count{endpoint="/predict",status="200"}'

    def count(lines: list[str]) -> float:
        return sum(float(found.split()[-1]) for found in lines if found.startswith(line))

    assert count(after) == count(before) + 1


def test_the_process_is_nobody_and_cannot_write(served: Container) -> None:
    assert served.run("id", "-u").stdout.strip() == "10001"
    assert served.run("grep", "-h", "CapEff", "/proc/1/status").stdout.split()[1].strip("0") == ""
    assert served.run("grep", "-h", "NoNewPrivs", "/proc/1/status").stdout.split()[1] == "1"
    for path in ("/", "/opt/serpentine", "/models"):
        refused = served.run("touch", f"{path}/written")
        assert refused.returncode != 0
        assert "Read-only file system" in refused.stderr


def test_the_first_process_is_an_init_that_reaps(served: Container) -> None:
    assert served.run("cat", "/proc/1/comm").stdout.strip() == "tini"


def test_its_health_check_follows_livez(served: Container) -> None:
    described = json.loads(docker("image", "inspect", served_image(served)))[0]
    check = described.get("HealthCheck") or described["Config"]["Healthcheck"]
    assert check["Test"] == ["CMD", "serpentine-health"]
    assert served.run("serpentine-health").returncode == 0
    nobody_there = served.run("env", "SERPENTINE_PORT=1", "serpentine-health")
    assert nobody_there.returncode != 0


def served_image(container: Container) -> str:
    """The id of a container's image."""
    return docker("inspect", "--format={{.Image}}", container.name)


def test_its_labels_say_what_it_is(image: str) -> None:
    labels = json.loads(docker("image", "inspect", "--format={{json .Config.Labels}}", image))
    said = {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()}
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert (said["version"], said["revision"]) == (__version__, head)
    assert said["title"] == "Serpentine"
    assert said["licenses"] == "Apache-2.0"


def test_no_compiler_nor_pip_is_left_in_it(served: Container, image: str) -> None:
    for tool in ("g++", "pip", *(() if for_gpus(image) else ("cc",))):  # Triton builds its launchers with cc
        assert served.run("sh", "-c", f"command -v {tool}").returncode != 0, tool


def test_the_bill_of_materials_lists_what_is_installed(served: Container) -> None:
    bill = json.loads(served.run("cat", "/usr/share/serpentine/sbom.cdx.json").stdout)
    assert bill["bomFormat"] == "CycloneDX"
    listed = {entry["name"].lower().replace("_", "-"): entry["version"] for entry in bill["components"]}
    code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    installed = json.loads(served.run("python", "-c", code).stdout)
    for name, version in installed.items():
        if name != "serpentine":
            assert listed[name.lower().replace("_", "-").replace(".", "-")] == version


def test_a_model_from_a_mounted_folder_is_served(start: Callable[..., Container]) -> None:
    folder = ROOT / "service" / "pretrained" / "affect-small"
    container = start(
        f"--volume={folder}:/models/mine:ro", SERPENTINE_MODELS="/models/mine,/opt/serpentine/pretrained/digits-trio"
    )
    assert content(predict(container.url))["model"] == "affect-small"
    assert content(generate(container.url))["model"] == "digits-trio"


def for_gpus(image: str) -> bool:
    """Whether it is of the target `cuda`."""
    label = '{{index .Config.Labels "org.opencontainers.image.description"}}'
    return "NVIDIA" in docker("image", "inspect", f"--format={label}", image)


def test_it_is_small_enough(image: str) -> None:
    size = int(docker("image", "inspect", "--format={{.Size}}", image))
    print(f"{size:,} bytes")
    assert size <= (MAX_BYTES_FOR_GPUS if for_gpus(image) else MAX_BYTES)


def test_it_is_ready_in_time(start: Callable[..., Container]) -> None:
    # Of three; the first may read from the disk. Where others keep the machine busy, its own work counts.
    containers = [start() for _ in range(3)]
    for container in containers:
        print(f"ready {container.ready_s:.1f} s after the start, {container.ready_cpu_s:.1f} s of a processor")
    assert min(min(container.ready_s, container.ready_cpu_s) for container in containers) <= READY_S


def test_stopped_under_load_it_answers_all_it_took_and_ends_with_0(start: Callable[..., Container]) -> None:
    container = start()
    outcomes: list[tuple[float, str]] = []  # of each request: when it was sent, and what came of it
    answered = threading.Event()

    def client() -> None:
        while True:
            sent = time.monotonic()
            try:
                response = predict(container.url)
            except httpx.ConnectError:
                return
            except httpx.TransportError as error:
                outcomes.append((sent, f"{error!r}"))
                return
            outcomes.append((sent, f"{response.status_code} {response.json().get('code', '')}".strip()))
            answered.set()

    clients = [threading.Thread(target=client) for _ in range(16)]
    for thread in clients:
        thread.start()
    assert answered.wait(60)
    signalled = time.monotonic()
    docker("kill", "--signal=TERM", container.name)
    assert docker("wait", container.name) == "0", container.logs()
    for thread in clients:
        thread.join()
    before = Counter(outcome for sent, outcome in outcomes if sent < signalled)
    print(f"sent before: {dict(before)}; after: {dict(Counter(o for sent, o in outcomes if sent >= signalled))}")
    # Who comes later is told so; a connection of the last moment is reset, and nothing of it was done.
    assert set(before) <= {"200", "503 draining"}
    assert before["200"] >= len(clients)
