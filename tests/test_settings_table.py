"""Settings for people: the documented table, and those that hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.cli import main
from service.settings import PREFIX, Settings
from service.settings_table import MASK, masked, table

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == table(), "run: python -m service.settings_table > docs/configuration.md"


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (SecretStr("key"), MASK),
        ("rediss://:secret@host:6379/0", f"rediss://{MASK}@host:6379/0"),
        ((Path("a"), SecretStr("b")), ["a", MASK]),
        ({"a": SecretStr("b")}, {"a": MASK}),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        (3, 3),
    ],
)
def test_secrets_are_masked(value: object, shown: object) -> None:
    assert masked(value) == shown


def test_the_command_prints_what_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("drain_s = 2.5")
    monkeypatch.setenv(f"{PREFIX}SESSION_STORE", "redis://me:secret@host/0")
    words = ["config", "--config", str(file), "--port", "99", "--model", "a", "--model", "b"]
    assert main([*words, "--json"]) == 0
    settings = {setting["name"]: setting for setting in json.loads(capsys.readouterr().out)}
    assert list(settings) == list(Settings.model_fields)
    pick = {name: (settings[name]["value"], settings[name]["source"]) for name in ("port", "drain_s", "models", "host")}
    assert pick == {
        "port": (99, "flag"),
        "drain_s": (2.5, "file"),
        "models": (["a", "b"], "flag"),
        "host": ("127.0.0.1", "default"),
    }
    assert main(words) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["models"].split() == ["flag", "a,b"]
    assert lines["session_store"].split() == ["environment", f"redis://{MASK}@host/0"]
    assert lines["threads"].split() == ["default", "unset"]


def test_the_command_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(f"{PREFIX}PROT", "1")
    assert main(["config"]) == 2
    assert "SERPENTINE_PROT; known are" in capsys.readouterr().err
