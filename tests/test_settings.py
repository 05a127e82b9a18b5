"""Settings: from the environment, validated, frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.kernels.backends import default_backend
from service.settings import BUNDLED_MODELS, Settings, SettingsError, load_settings, origins


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERPENTINE_BACKEND", raising=False)
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert settings.models == BUNDLED_MODELS
    assert settings.backend == default_backend()


def test_a_backend_that_is_not_here_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.settings.missing", lambda backend: "not built" if backend == "cpu" else None)
    assert Settings(backend="reference").backend == "reference"
    with pytest.raises(ValidationError, match="backend cpu: not built"):
        Settings(backend="cpu")


def test_the_reference_has_no_bf16() -> None:
    with pytest.raises(ValidationError, match="dtype bfloat16: the backend reference computes in float32"):
        Settings(backend="reference", dtype="bfloat16")


def test_the_environment_and_the_command_line_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPENTINE_PORT", "9000")
    monkeypatch.setenv("SERPENTINE_DRAIN_S", "1.5")
    monkeypatch.setenv("SERPENTINE_MODELS", "a/b, c")
    settings = load_settings({"port": "9001", "host": None})
    assert settings.port == 9001
    assert settings.host == "127.0.0.1"
    assert settings.drain_s == 1.5
    assert settings.models == (Path("a/b"), Path("c"))
    assert load_settings({"models": (Path("d"),)}).models == (Path("d"),)


def test_a_file_below_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('models = ["a"]\nslots = 5\ndrain_s = 2\nstream_lag_ms = 7\n')
    monkeypatch.setenv("SERPENTINE_CONFIG", str(file))
    monkeypatch.setenv("SERPENTINE_DRAIN_S", "1.5")
    monkeypatch.setenv("SERPENTINE_SLOTS", "7")
    monkeypatch.setenv("SERPENTINE_HOST", "")
    given = {"slots": 6, "port": None}
    settings = load_settings(given)
    assert (settings.models, settings.slots, settings.drain_s, settings.stream_lag_ms) == ((Path("a"),), 6, 1.5, 7)
    came = origins(given)
    assert (came["slots"], came["drain_s"], came["stream_lag_ms"]) == ("flag", "environment", "file")
    assert (came["host"], came["port"], came["config"]) == ("default", "default", "environment")
    assert load_settings({"config": file}).stream_lag_ms == 7


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("prot = 9000", "unknown settings prot; known are .*port"),
        ('config = "another"', "unknown settings config"),
        ("port = 70000", "^SERPENTINE_PORT: "),
        ("port 9000", "cannot be read"),
        (None, "cannot be read: .*No such file"),
    ],
)
def test_what_is_wrong_in_a_file(tmp_path: Path, text: str | None, fault: str) -> None:
    file = tmp_path / "settings.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=fault):
        load_settings({"config": file})


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPENTINE_THREADS", "")
    assert load_settings().threads is None


def test_a_misspelt_variable_fails_with_those_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPENTINE_PROT", "9000")
    with pytest.raises(SettingsError, match=r"SERPENTINE_PROT; known are .*SERPENTINE_PORT"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "http"),
        ("MODELS", ","),
        ("BACKEND", "abacus"),
        ("LOG_LEVEL", "loud"),
        ("SLOTS", "0"),
        ("MAX_BODY_BYTES", "-1"),
        ("DRAIN_S", "-1"),
        ("MAX_MEDIA_SECONDS", "0"),
    ],
)
def test_a_value_out_of_range_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SERPENTINE_{name}", value)
    with pytest.raises(SettingsError, match=f"^SERPENTINE_{name}: "):
        load_settings()


@pytest.mark.parametrize(
    "given",
    [
        {"default_deadline_ms": 2, "max_deadline_ms": 1},
        {"slots": 4, "chunk_steps": 9, "step_budget": 8},
        {"slots": 5, "chunk_steps": 8, "step_budget": 9},
    ],
)
def test_settings_that_contradict_each_other(given: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=" is over "):
        load_settings(given)


def test_every_fault_has_its_line() -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings({"slots": 0, "feature_threads": 0})
    assert len(str(raised.value).splitlines()) == 2


def test_frozen_and_closed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings(prot=1)  # type: ignore[call-arg]
