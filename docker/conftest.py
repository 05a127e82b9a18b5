"""What the tests of an image share: containers of it, locked up as an operator would, and the service without one."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator
from pathlib import Path

import httpx
import pytest

READY_WITHIN_S = 120  # until a test gives up; what is wanted of a start is a test of its own
LOCKED_UP = (
    "--read-only",
    "--tmpfs=/tmp:rw,size=256m,mode=1777",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--memory=3g",
    "--pids-limit=256",
    "--network=host",
)


def docker(*words: str, check: bool = True) -> str:
    """Run the Docker client -> what it printed. Raises AssertionError with its complaint where it fails."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 or not check, f"docker {' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


class Container:
    """A container of the image on a port of the host, as an operator would lock it up.

    It was ready `ready_s` after its start, of which a processor had worked `ready_cpu_s` for it.
    """

    def __init__(self, image: str, *options: str, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.name = f"serpentine-test-{uuid.uuid4().hex[:12]}"
        variables = {"SERPENTINE_PORT": str(port), "SERPENTINE_HOST": "127.0.0.1", **environment}
        settings = [f"--env={name}={value}" for name, value in variables.items()]
        begun = time.monotonic()
        docker("run", "--detach", f"--name={self.name}", *LOCKED_UP, *options, *settings, image)
        try:
            self._until_ready(begun)
        except BaseException:
            self.remove()
            raise
        self.ready_s = time.monotonic() - begun
        self.ready_cpu_s = self._cpu_s()

    def _until_ready(self, begun: float) -> None:
        with httpx.Client(base_url=self.url, verify=False) as client:
            while time.monotonic() < begun + READY_WITHIN_S:
                try:
                    if client.get("/readyz").status_code == 200:
                        return
                except httpx.TransportError:
                    assert self.state("Running") is True, f"it ended: {self.logs()}"
                time.sleep(0.1)
        raise AssertionError(f"not ready after {READY_WITHIN_S} s: {self.logs()}")

    def _cpu_s(self) -> float:
        """Seconds that a processor has worked for the service, the child of the container's first process."""
        init = self.state("Pid")
        (child,) = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        user, system = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def state(self, key: str) -> object:
        """One entry of the container's state."""
        return json.loads(docker("inspect", "--format={{json .State}}", self.name))[key]

    def logs(self) -> str:
        """What it wrote so far."""
        done = subprocess.run(["docker", "logs", self.name], capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        return subprocess.run(["docker", "exec", self.name, *words], capture_output=True, text=True, timeout=60)

    def remove(self) -> None:
        """End it, whatever it does."""
        docker("rm", "--force", self.name, check=False)


@pytest.fixture(scope="session")
def image() -> str:
    """The name of the image under test."""
    return os.environ["IMAGE"]


@pytest.fixture
def start(image: str) -> Generator[Callable[..., Container], None, None]:
    """Starts containers, and removes them at the end."""
    started: list[Container] = []

    def run(*options: str, **environment: str) -> Container:
        started.append(Container(image, *options, **environment))
        return started[-1]

    yield run
    for container in started:
        container.remove()


@pytest.fixture(scope="module")
def served(image: str) -> Generator[Container, None, None]:
    """One container for all tests that leave it as it was."""
    container = Container(image, SERPENTINE_THREADS="1", OMP_NUM_THREADS="1")
    yield container
    container.remove()


@pytest.fixture(scope="module")
def host() -> Generator[str, None, None]:
    """The address of the same service, from this checkout, on this machine without a container."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", "0"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "SERPENTINE_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found is not None
    yield found[0]
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0
