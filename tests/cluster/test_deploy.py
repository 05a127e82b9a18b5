"""What goes to a cluster, and how one is looked for; without one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")

from service.cluster.deploy import Shape, deploy, everywhere, stop
from service.settings import load_settings


def test_replicas_get_what_was_set_here_and_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("SERPENTINE_")]:
        monkeypatch.delenv(name)
    (tmp_path / "file.toml").write_text("slots = 5")
    for name, value in {
        "MODELS": "a,b",
        "SESSION_STORE": "redis://kept:6379",
        "CONFIG": str(tmp_path / "file.toml"),
    }.items():
        monkeypatch.setenv(f"SERPENTINE_{name}", value)
    monkeypatch.chdir(tmp_path)
    assert everywhere(load_settings({"threads": "3"})) == {
        "models": (tmp_path / "a", tmp_path / "b"),
        "session_store": "redis://kept:6379",
        "slots": 5,
        "threads": 3,
    }


def test_a_head_that_is_gone_is_told_at_once_and_none_is_started() -> None:
    with socket.socket() as taken:  # bound and not listening: whoever connects is refused
        taken.bind(("", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="no Ray cluster answers at"):
            deploy({}, Shape(), host="127.0.0.1", port=8080, address=address)
        with pytest.raises(ConnectionError, match="no Ray cluster answers at"):
            stop(address)


def test_what_is_no_checkpoint_goes_to_no_cluster(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a checkpoint folder"):
        deploy({"models": (tmp_path,)}, Shape(), host="127.0.0.1", port=8080)


def test_replicas_without_a_store_are_refused() -> None:
    with pytest.raises(ValueError, match="SERPENTINE_SESSION_STORE"):
        deploy({}, Shape(replicas=(1, 2)), host="127.0.0.1", port=8080)
