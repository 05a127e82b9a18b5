"""Commands whose output nobody reads to its end, as with `| head -1`: real processes with real pipes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

from service import cli

COMMAND = [sys.executable, "-m", "service"]
BUFFERED = os.environ | {"PYTHONUNBUFFERED": ""}


@pytest.fixture
def nobody() -> Generator[int, None, None]:
    """The end to write to of a pipe without another."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("words", ["--help", "config", "config --json", "keys new alice", "models --model TINY"])
def test_a_command_that_nobody_listens_to_ends_quietly(words: str, tiny_checkpoint: Path, nobody: int) -> None:
    command = [*COMMAND, *words.replace("TINY", str(tiny_checkpoint)).split()]
    ended = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, env=BUFFERED, timeout=100)
    said = ended.stderr.decode()
    assert ended.returncode == 141, said
    assert said == "" or said.startswith("The key, which is shown this once")


def test_a_reader_that_leaves_after_a_line_has_it() -> None:
    unbuffered = BUFFERED | {"PYTHONUNBUFFERED": "1"}  # or all of it would be in the pipe at once
    command = [*COMMAND, "config"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=unbuffered) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline().split()[0]
        process.stdout.close()
        assert (first, process.stderr.read()) == (b"config", b"")


def test_complaints_that_nobody_reads_end_quietly_too(nobody: int) -> None:
    command = [*COMMAND, "serve", "--port", "eighty"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=nobody, env=BUFFERED, timeout=100)
    assert (ended.returncode, ended.stdout) == (141, b"")


def test_a_service_that_nobody_listens_to_serves(tiny_checkpoint: Path, nobody: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*COMMAND, "serve", "--port", str(port), "--model", str(tiny_checkpoint)]
    with subprocess.Popen(command, stdout=nobody, stderr=subprocess.PIPE, env=BUFFERED) as process:
        try:
            assert wait_for(f"http://127.0.0.1:{port}/livez") == 200
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read().decode()


def wait_for(url: str) -> int:
    for _ in range(600):
        try:
            return httpx.get(url, timeout=20).status_code
        except httpx.ConnectError:
            time.sleep(0.1)
    pytest.fail("it does not listen")


@pytest.mark.usefixtures("capfd")
def test_a_pipe_of_another_is_no_quiet_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argv: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(cli, "_run", broken)
    with pytest.raises(BrokenPipeError):
        cli.main([])
