"""The tree of errors, and what each becomes on the wire."""

from __future__ import annotations

import pytest

from service import errors
from service.api.problems import problem, problem_response
from service.errors import FieldError, InvalidInput, ServiceError

TABLE = {
    "BadRequest": (400, "bad_request"),
    "InvalidInput": (422, "invalid_input"),
    "Unauthorized": (401, "unauthorized"),
    "Forbidden": (403, "forbidden"),
    "RequestTimeout": (408, "request_timeout"),
    "NotFound": (404, "not_found"),
    "SessionConflict": (409, "session_conflict"),
    "TooLarge": (413, "too_large"),
    "UnsupportedMedia": (415, "unsupported_media"),
    "UpgradeRequired": (426, "upgrade_required"),
    "RateLimited": (429, "rate_limited"),
    "HeadTooLarge": (431, "head_too_large"),
    "Overloaded": (503, "overloaded"),
    "Draining": (503, "draining"),
    "EngineDown": (503, "engine_down"),
    "DeadlineExceeded": (504, "deadline_exceeded"),
    "Internal": (500, "internal"),
}


def test_the_tree_is_the_contracts_table() -> None:
    found = {cls.__name__: (cls.status, cls.code) for cls in ServiceError.__subclasses__()}
    assert found == TABLE


@pytest.mark.parametrize("name", TABLE)
def test_each_becomes_a_problem(name: str) -> None:
    error: ServiceError = getattr(errors, name)("so it is")
    body = problem(error, "id-1")
    status, code = TABLE[name]
    assert body == {
        "type": f"urn:serpentine:problem:{code}",
        "title": error.title,
        "status": status,
        "detail": "so it is",
        "code": code,
        "request_id": "id-1",
    }
    response = problem_response(error, "id-1")
    assert response.status_code == status
    assert response.media_type == "application/problem+json"
    assert ("retry-after" in response.headers) == (status == 503)


@pytest.mark.parametrize(("seconds", "header"), [(0.01, "1"), (1.0, "1"), (1.2, "2"), (60, "60")])
def test_retry_after_is_in_whole_seconds(seconds: float, header: str) -> None:
    error = errors.RateLimited("slowly", retry_after_s=seconds)
    assert problem_response(error, "id-1").headers["retry-after"] == header


def test_fields_are_named() -> None:
    error = InvalidInput.at("features.audio", "is wrong")
    assert error.detail == "features.audio: is wrong"
    assert error.errors == (FieldError(("features", "audio"), "is wrong"),)
    assert InvalidInput.at(("audio", 3), "no").errors == (FieldError(("audio", 3), "no"),)
    assert problem(error, "id-1")["errors"] == [{"loc": ["features", "audio"], "msg": "is wrong"}]
