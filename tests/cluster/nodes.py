"""Ray on this machine, with a Redis for sessions: two nodes on loopback addresses, or one that a command deploys to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import psutil
import ray
from ray import serve

from service.cluster.deploy import Shape, deploy
from tests.checkpoints import build_checkpoint
from tests.sessions.redis_server import RedisServer
from tests.trio import build_trio

LEASE_S = 2.0


class Node:
    """A Ray node, as `ray start` makes it; ip: None for what Ray takes by itself."""

    def __init__(
        self, folder: Path, ip: str | None, *, cpus: int = 2, head: str | None = None, joins: str | None = None
    ) -> None:
        arguments = ["--head", f"--port={head.split(':')[1]}", "--include-dashboard=false"] if head else []
        arguments += [f"--address={joins}"] if joins else []
        arguments += [f"--node-ip-address={ip}"] if ip else []
        ray_start = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
        common = [f"--num-cpus={cpus}", f"--object-store-memory={100 * 2**20}", "--disable-usage-stats"]
        log = folder / f"{ip}.log"
        with log.open("wb") as out:
            self._popen = subprocess.Popen([*ray_start, *common, *arguments], stdout=out, stderr=subprocess.STDOUT)
        give_up = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            if self._popen.poll() is not None or time.monotonic() > give_up:
                self.kill()
                raise AssertionError(log.read_text())
            time.sleep(0.1)

    def kill(self) -> None:
        """All its processes at once, as a power cut would. May be called again."""
        if self._popen.poll() is None:
            for process in [*psutil.Process(self._popen.pid).children(recursive=True), self._popen]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._popen.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def models(folder: Path) -> tuple[Path, Path]:
    """One for clips and one for prompts."""
    return build_checkpoint(folder / "clips"), build_trio(folder / "trio")


class TwoNodes:
    """A context: the proxy of the first node answers at `url`; `lose` kills the second node."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nodes")))
            redis = RedisServer()
            stack.callback(redis.close)
            given: dict[str, Any] = {
                "models": models(folder),
                "session_store": redis.url,
                "session_lease_s": LEASE_S,
                "backend": os.environ.get("SERPENTINE_BACKEND", "cpu"),
                "threads": 1,
            }
            address = f"127.0.0.1:{free_port()}"
            stack.callback(lambda: [node.kill() for node in self._nodes])
            self._nodes = [Node(folder, "127.0.0.1", head=address), Node(folder, "127.0.0.2", joins=address)]
            ray.init(address=address, _node_ip_address="127.0.0.1", log_to_driver=False)
            stack.callback(ray.shutdown)
            stack.callback(serve.shutdown)
            port = free_port()
            shape = Shape(replicas=(2, 2), gateways=2, cpus=1, spread=True, every_node_listens=False)
            deploy(given, shape, host="127.0.0.1", port=port)
            self.url = f"http://127.0.0.1:{port}"
            self._stack = stack.pop_all()
        return self

    def lose(self) -> None:
        """Kill the second node and all that runs there, as a power cut would."""
        self._nodes[1].kill()

    def __exit__(self, *raised: object) -> None:
        self._stack.close()


class Deployed:
    """A context: one Ray node, and the service on it at `url`, put there by the command `serpentine cluster deploy`."""

    def __init__(self, *options: str, **environment: str) -> None:
        """options, environment: of the command, beside what every test needs."""
        self.options, self.given = options, environment

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nodes")))
            redis = RedisServer()
            stack.callback(redis.close)
            address = f"127.0.0.1:{free_port()}"
            node = Node(folder, None, cpus=4, head=address)
            stack.callback(node.kill)
            self.environment = {
                **os.environ,
                "RAY_ADDRESS": address,
                "SERPENTINE_MODELS": ",".join(map(str, models(folder))),
                "SERPENTINE_SESSION_STORE": redis.url,
                "SERPENTINE_THREADS": "1",
                **self.given,
            }
            port = free_port()
            self.url = f"http://127.0.0.1:{port}"
            said = self.command("deploy", "--host=127.0.0.1", f"--port={port}", *self.options)
            assert said.startswith(f"Serpentine listens on port {port}"), said
            self._stack = stack.pop_all()
        return self

    def command(self, *words: str) -> str:
        """Run `serpentine cluster` -> what it printed. Raises AssertionError with its complaint where it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "service", "cluster", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def __exit__(self, *raised: object) -> None:
        self._stack.close()
