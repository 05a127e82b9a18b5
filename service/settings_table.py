"""The settings for people: the table of all there are, and those that hold here with where each came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretBytes, SecretStr

from service.settings import BUNDLED, BUNDLED_MODELS, PREFIX, Settings, load_settings, origins

MASK = "********"
_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")  # of a URL, with the user's name
_RANGE = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "array": "list", "boolean": "true or false"}

HEADER = """# Configuration

Every setting is an environment variable, and has a name in the TOML file that `SERPENTINE_CONFIG` or `--config` points
to; `serpentine serve --help` lists those that are flags too. A flag goes before the environment, the environment before
the file. What is unknown, misspelt or out of its range fails at start. `serpentine config` prints what holds, and where
each value came from (`--json` for programs); passwords are masked. [Traces](runbook.md#traces) have OpenTelemetry's own
variables.

This page is made from the code: `python -m service.settings_table > docs/configuration.md`.

| variable | name in a file | takes | default | what |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Effective:
    """A setting as it holds. source: flag, environment, file or default; secrets are masked."""

    name: str
    value: Any
    source: str
    description: str


def effective(given: Mapping[str, Any]) -> list[Effective]:
    """Every setting, with `given` fields on top. Raises SettingsError."""
    settings, sources = load_settings(given), origins(given)
    return [
        Effective(name, masked(getattr(settings, name)), sources[name], field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def masked(value: Any) -> Any:
    """A value as JSON, without what nobody may read."""
    if isinstance(value, SecretStr | SecretBytes):
        return MASK
    if isinstance(value, Mapping):
        return {str(key): masked(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [masked(entry) for entry in value]
    if isinstance(value, str | Path):
        return _PASSWORD.sub(f"{MASK}@", str(value))
    return value


def shown(value: Any) -> str:
    """A masked value in a line."""
    if value is None:
        return "unset"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def table() -> str:
    """docs/configuration.md."""
    properties = Settings.model_json_schema()["properties"]
    return HEADER + "".join(_row(name, properties[name]) for name in Settings.model_fields)


def _row(name: str, schema: Mapping[str, Any]) -> str:
    field = Settings.model_fields[name]
    cells = (f"`{PREFIX}{name.upper()}`", f"`{name}`", _takes(schema), _default(name), field.description or "")
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


def _default(name: str) -> str:
    field = Settings.model_fields[name]
    if field.default_factory is not None:
        return "depends"
    if field.default == BUNDLED_MODELS:
        return f"the bundled {' and '.join(folder.relative_to(BUNDLED).name for folder in BUNDLED_MODELS)}"
    if field.default is None:
        return "unset"
    if field.default == ():
        return "none"
    size = f" ({_size(field.default)})" if name.endswith("_bytes") else ""
    return f"`{shown(masked(field.default))}`{size}"


def _takes(schema: Mapping[str, Any]) -> str:
    """What values a field may have."""
    schema = next((option for option in schema.get("anyOf", ()) if option.get("type") != "null"), schema)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = "path" if schema.get("format") == "path" else _TYPES.get(schema.get("type", ""), "text")
    return ", ".join((kind, *(f"{sign} {schema[key]}" for key, sign in _RANGE.items() if key in schema)))


def _size(value: int) -> str:
    for unit, power in (("MiB", 20), ("KiB", 10)):
        if value and value % (1 << power) == 0:
            return f"{value >> power} {unit}"
    return f"{value} bytes"


if __name__ == "__main__":
    print(table(), end="")
