"""/openapi.json: its examples work when pasted, and what it does not say does not happen."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.api.openapi import JSON_LINES, SAFETENSORS, examples
from service.errors import DeadlineExceeded
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.serving import serving

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@schemathesis.serializer(*JSON_LINES, SAFETENSORS)
def as_it_stands(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="module")
def url(tiny_checkpoint: Path, trio_checkpoint: Path) -> Generator[str, None, None]:
    """A service that listens, of a model of each task."""
    runtime = Runtime.start(Settings(models=(tiny_checkpoint, trio_checkpoint), slots=8, max_tokens=120), Metrics())
    with serving(runtime) as address:
        yield address


@pytest.fixture(scope="module")
def document(url: str) -> dict[str, Any]:
    """The OpenAPI document."""
    parsed: dict[str, Any] = httpx.get(f"{url}/openapi.json").json()
    return parsed


@pytest.fixture(scope="module")
def api(url: str) -> Any:
    """The document, for schemathesis."""
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
def test_no_5xx_and_nothing_undocumented(api: Any, mode: GenerationMode) -> None:
    tried = 0
    for found in api.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # it has nothing that can be wrong

        @settings(max_examples=60, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def conforms(case: Any) -> None:
            nonlocal tried
            tried += 1
            response = case.call()
            late = response.status_code == DeadlineExceeded.status  # a deadline of some milliseconds is drawn too
            case.validate_response(response, checks=[c for c in CHECKS if not (late and c is not_a_server_error)])

        conforms()
    assert tried > 100


def test_every_example_works_as_it_stands(url: str, document: dict[str, Any]) -> None:
    posted = 0
    for path, operations in document["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        for kind, body in content.items():
            for name, example in body.get("examples", {}).items():
                value = example["value"]
                text = value if isinstance(value, str) else json.dumps(value)
                response = httpx.post(f"{url}{path}", content=text, headers={"Content-Type": kind})
                assert response.status_code == 200, (path, kind, name, response.text)
                answer = {"/generate": "choices", "/sessions": "task"}.get(path, "sentiment")
                for line in response.text.splitlines():
                    assert answer in json.loads(line), (path, kind, name, line)
                posted += 1
    assert posted >= 9


def test_errors_are_documented_as_problems(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            for status, response in operation["responses"].items():
                kinds = list(response.get("content", ()))
                if status == "204":
                    assert not kinds
                    continue
                assert (kinds == ["application/problem+json"]) == (status != "200"), (path, status, kinds)
    for path, more in (("/predict", set()), ("/generate", {"409"})):
        statuses = set(document["paths"][path]["post"]["responses"])
        assert statuses == {"200", "400", "401", "404", "408", "413", "415", "422", "429", "500", "503", "504"} | more


def test_every_reference_is_defined(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    names = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names
    assert names <= set(document["components"]["schemas"])
    assert "#/$defs" not in text


class _Config:
    """As much of a served model as examples are made of."""

    def __init__(self, clock: str, encoder: str | None, **dims: int) -> None:
        recipes = {name: {"recipe": encoder if name == "text" else None} for name in dims}
        self.features = {"clock": {"kind": clock}, "modalities": recipes}
        self.modalities = dims
        self.config = self.model = self


def test_examples_fit_the_model() -> None:
    words: Any = _Config("ticks", "minilm-l6-384", text=384, audio=25)
    found = examples(words)
    assert list(found) == ["sentence", "segments", "text and features", "features"]
    assert found["text and features"]["features"] == {"audio": [[0.5] * 25] * 2}
    aligned: Any = _Config("aligned", None, text=7, audio=3, video=2)
    assert list(examples(aligned)) == ["features"]
    assert {name: len(rows[0]) for name, rows in examples(aligned)["features"]["features"].items()} == {
        "text": 7,
        "audio": 3,
        "video": 2,
    }
