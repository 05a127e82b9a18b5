"""What /openapi.json says of the routes: bodies in their encodings with examples that work, every status."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from service.api import generate_schemas, schemas, session_schemas
from service.api.keys import OPEN
from service.api.problems import MEDIA_TYPE
from service.api.sse import EVENT_STREAM
from service.served import GenerativeModel, ServedModel

JSON = "application/json"
FORM = "multipart/form-data"
SAFETENSORS = "application/vnd.safetensors"
JSON_LINES = ("application/jsonl", "application/x-ndjson")

_REF = "#/components/schemas/{model}"
_COMPONENTS = (
    schemas.PredictBody,
    schemas.PredictForm,
    schemas.PredictionOut,
    generate_schemas.GenerateBody,
    generate_schemas.TextField,
    generate_schemas.ImageField,
    generate_schemas.AudioField,
    generate_schemas.TokensField,
    generate_schemas.GenerationOut,
    session_schemas.SessionBody,
    session_schemas.SessionPrompt,
    session_schemas.SessionOut,
    session_schemas.ReadOut,
    schemas.Problem,
    schemas.ModelCard,
    schemas.ModelList,
    schemas.Health,
)
_EVENTS = (
    "With `stream`: events whose data is JSON with `type` and `sequence_number`: response.created; of each part "
    "part.started {choice_index, index, part_type}, part.delta {choice_index, index, text | image_png | audio_wav} and "
    "part.completed {choice_index, index, part}; and one of response.completed, response.incomplete, response.failed "
    "{response}. Text deltas add up; of pictures, the latest counts."
)
_BINARY = {"type": "string", "format": "binary"}
_REFUSALS = (400, 404, 408, 413, 415, 422, 503, 504)
_WRITES = (409,)  # that a state of another model, or a session in use, is refused with
_REQUEST_ID = {"X-Request-Id": {"description": "The client's, or a new one.", "schema": {"type": "string"}}}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_HEADERS = [
    {
        "name": "X-Deadline-Ms",
        "in": "header",
        "description": "Milliseconds from arrival within which an answer is of use; 504 after them. "
        + schemas.DEADLINE_NOTE,
        "schema": {"type": "integer", "minimum": schemas.FAIR_DEADLINE_MS},
    },
    {
        "name": "X-Request-Id",
        "in": "header",
        "description": "Names the request in the answer and in the logs, if it is 1 to 128 of A-Z a-z 0-9 . _ -",
        "schema": {"type": "string"},
    },
    {
        "name": "X-Priority",
        "in": "header",
        "description": "At most the key's own priority, which it is without this header.",
        "schema": {"enum": ["interactive", "batch"]},
    },
]


def examples(model: ServedModel) -> dict[str, dict[str, Any]]:
    """Requests by name that `model` answers as they stand."""
    dims = model.config.model.modalities
    features = model.config.features
    aligned = features["clock"]["kind"] == "aligned"
    names = list(dims) if aligned else [min(dims, key=lambda name: dims[name])]
    steps = {name: [[0.5] * dims[name]] * 2 for name in names}
    found: dict[str, dict[str, Any]] = {}
    if features["modalities"].get("text", {}).get("recipe"):
        segments = [{"t": 0.0, "text": "I was so worried."}, {"t": 1.5, "text": "But it went wonderfully well!"}]
        found["sentence"] = {"media": {"text": "What a wonderful day, I could not be happier."}}
        found["segments"] = {"media": {"text": segments}, "timeline": True}
        if "text" not in steps:
            found["text and features"] = {"media": {"text": segments}, "features": steps, "attribution": True}
    found["features"] = {"features": steps, "timeline": True, "attribution": True}
    return found


def generate_examples(model: GenerativeModel) -> dict[str, dict[str, Any]]:
    """Requests by name that `model` answers as they stand."""
    media, words = model.vocabulary.media, model.codecs.text is not None
    prompt: Any = "three plus four is" if words else [{"type": "tokens", "modality": "text", "ids": [1, 2, 3]}]
    found = {"prompt": {"prompt": prompt, "max_tokens": 120, "seed": 7}}
    for name, medium in media.items():
        fewest = medium.codes[0]
        item = {"type": "tokens", "modality": name, "ids": [0] * fewest}
        found[f"only {name}"] = {"prompt": prompt, "mode": f"{name}-only", "max_tokens": medium.codes[1] + 2}
        found[f"{name} codes in"] = {"prompt": [item], "mode": "text-only", "temperature": 0, "max_tokens": 8}
    found["several"] = {"prompt": prompt, "mode": "text-only", "max_tokens": 8, "n": 2, "logprobs": 2, "tokens": True}
    return found


def predict_docs(model: ServedModel | None) -> dict[str, Any]:
    """OpenAPI of POST /predict, with examples for `model`."""
    samples = {} if model is None else _samples(examples(model))
    body = {"schema": _ref(schemas.PredictBody), "examples": samples}
    form: dict[str, Any] = {
        "schema": _ref(schemas.PredictForm),
        "encoding": {
            "options": {"contentType": JSON},
            "audio": {"contentType": "*/*"},
            "video": {"contentType": "*/*"},
        },
    }
    tensors = {
        "schema": _BINARY
        | {
            "description": "Tensors text, audio, video [steps][dim] of F32, F16 or BF16, and timestamps.text and so on "
            "[steps] of seconds; options are strings in the metadata."
        }
    }
    return _docs(
        {JSON: {"schema": _ref(schemas.PredictionOut)}},
        _REFUSALS,
        {JSON: body, FORM: form, SAFETENSORS: tensors},
    )


def batch_docs(model: ServedModel | None) -> dict[str, Any]:
    """OpenAPI of POST /predict/batch, with examples for `model`."""
    lines = "\n".join(orjson.dumps(value).decode() for value in (examples(model) if model else {}).values())
    samples = {"lines": {"value": lines}} if lines else {}
    content = {kind: {"schema": {"type": "string"}, "examples": samples} for kind in JSON_LINES}
    answer = {kind: {"schema": {"type": "string"}} for kind in JSON_LINES}
    return _docs(answer, (408, 413, 415, 422, 503, 504), content)


def generate_docs(model: GenerativeModel | None) -> dict[str, Any]:
    """OpenAPI of POST /generate, with examples for `model`."""
    samples = {} if model is None else _samples(generate_examples(model))
    answer = {
        JSON: {"schema": _ref(generate_schemas.GenerationOut)},
        EVENT_STREAM: {"schema": {"description": _EVENTS}},  # without a type: tools differ in what the value is
    }
    refusals = (*_REFUSALS, *_WRITES)
    return _docs(answer, refusals, {JSON: {"schema": _ref(generate_schemas.GenerateBody), "examples": samples}})


def create_docs() -> dict[str, Any]:
    """OpenAPI of POST /sessions."""
    body = {"schema": _ref(session_schemas.SessionBody), "examples": {"new": {"value": {}}}}
    tensors = {"schema": _BINARY | {"description": "A snapshot as GET /sessions/{id}/snapshot gives it."}}
    answer = {JSON: {"schema": _ref(session_schemas.SessionOut)}}
    return _docs(answer, (*_REFUSALS, *_WRITES), {JSON: body, SAFETENSORS: tensors})


def steps_docs() -> dict[str, Any]:
    """OpenAPI of POST /sessions/{id}/steps."""
    kinds = (schemas.PredictBody, session_schemas.SessionPrompt)
    answers = (schemas.PredictionOut, session_schemas.ReadOut)
    content = {
        JSON: {"schema": {"anyOf": [_ref(kind) for kind in kinds]}},
        FORM: {"schema": _ref(schemas.PredictForm)},
        SAFETENSORS: {"schema": _BINARY},
    }
    answer = {JSON: {"schema": {"anyOf": [_ref(answer) for answer in answers]}}}
    return _docs(answer, (*_REFUSALS, *_WRITES), content)


def snapshot_docs() -> dict[str, Any]:
    """OpenAPI of GET /sessions/{id}/snapshot."""
    return _docs({SAFETENSORS: {"schema": _BINARY}}, (404, 409, 422, 503))


def gone_docs() -> dict[str, Any]:
    """OpenAPI of DELETE /sessions/{id}."""
    docs = _docs({}, (404, 422, 503))
    docs["responses"][204] = docs["responses"].pop(200) | {"description": HTTPStatus.NO_CONTENT.phrase}
    del docs["responses"][204]["content"]
    return docs | {"status_code": 204}


def json_docs(answer: type[BaseModel], *refusals: int) -> dict[str, Any]:
    """OpenAPI of a GET that answers JSON."""
    return _docs({JSON: {"schema": _ref(answer)}}, (*refusals, 422))


def metrics_docs() -> dict[str, Any]:
    """OpenAPI of GET /metrics."""
    text = {"schema": {"type": "string"}}
    return _docs({"text/plain": text, "application/openmetrics-text": text}, (422,))


def install_openapi(app: FastAPI) -> None:
    """Make `app.openapi()` include the schemas that the routes refer to."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, definitions = models_json_schema([(model, "validation") for model in _COMPONENTS], ref_template=_REF)
            document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
            document["components"]["securitySchemes"] = _SECURITY
            for path, methods in document["paths"].items():
                for operation in methods.values() if path not in OPEN else ():
                    operation["security"] = [{name: []} for name in _SECURITY] + [{}]  # {}: where none are configured
                    operation["responses"] |= {str(status): _refusal(status) for status in (401, 429)}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _docs(answer: dict[str, Any], refusals: tuple[int, ...], content: dict[str, Any] | None = None) -> dict[str, Any]:
    """Keyword arguments of a route."""
    responses: dict[int | str, Any] = {200: {"description": "OK", "content": answer, "headers": _REQUEST_ID}}
    for status in (*refusals, 500):
        responses[status] = _refusal(status)
    extra: dict[str, Any] = {}
    if content is not None:
        extra = {"parameters": _HEADERS, "requestBody": {"required": True, "content": content}}
    return {"responses": responses, "response_class": Response, "openapi_extra": extra}


def _refusal(status: int) -> dict[str, Any]:
    return {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": _ref(schemas.Problem)}},
        "headers": _REQUEST_ID,
    }


def _samples(values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: {"value": value} for name, value in values.items()}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}
