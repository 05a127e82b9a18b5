"""The command `serve`, in-process up to its first line; what follows is in tests/api/test_server.py."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from service.runtime import Runtime
from tests.commands.running import run


def test_a_busy_port_is_2_before_any_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runtime, "start", lambda *arguments: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        status, out, err = run(capsys, "serve", "--port", port)
    assert (status, out) == (2, "")
    assert err == f"serpentine: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_keys_that_cannot_be_used_fail_at_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "keys.jsonl"
    monkeypatch.setenv("SERPENTINE_API_KEYS_FILE", str(path))
    assert run(capsys, "serve", "--port", "0")[0] == 2
    path.write_text("open sesame")
    status, _, said = run(capsys, "serve", "--port", "0")
    assert status == 2
    assert "line 1" in said
    assert "sesame" not in said


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_an_open_service_beyond_this_machine_is_warned_of(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tiny_checkpoint: Path,
    host: str,
    warned: bool,
) -> None:
    monkeypatch.setattr("service.commands.serve.Server.run", lambda self, sockets: self.runtime.close(0))
    status, _, said = run(capsys, "serve", "--model", tiny_checkpoint, "--host", host, "--port", "0")
    assert status == 0
    assert ("no API keys are configured" in said) == warned
