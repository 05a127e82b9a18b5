"""A real redis-server on a Unix socket, started and stopped by tests."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import redis

NEEDED = pytest.mark.skipif(shutil.which("redis-server") is None, reason="the binary redis-server is not on the PATH")


class RedisServer:
    """Its data live as long as it does; `durable`: as long as its folder. The socket has a short path, as it must."""

    def __init__(self, *, durable: bool = False) -> None:
        self.durable = durable
        self.folder = Path(tempfile.mkdtemp(prefix="redis"))
        self.url = f"unix://{self.folder / 's'}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        options = {"port": "0", "unixsocket": str(self.folder / "s"), "save": "", "dir": str(self.folder)}
        if self.durable:
            options |= {"appendonly": "yes", "appendfsync": "always"}
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        give_up = time.monotonic() + 60
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    assert time.monotonic() < give_up
                    time.sleep(0.02)

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)
