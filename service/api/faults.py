"""What is wrong with a field, in words: what came, and what was expected. pydantic tells the latter only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

MAX_SHOWN = 60  # characters of what came

_EXPECTED = {
    "int_type": "a whole number of 64 bits",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "a string of {min_length} or more characters",
    "string_too_long": "a string of at most {max_length} characters",
    "literal_error": "{expected}",
}
"""By pydantic's kind of fault, over its context."""


def faults_of(error: ValidationError) -> list[ErrorDetails]:
    """All of them."""
    return error.errors(include_url=False)


def message(fault: Mapping[str, Any]) -> str:
    """One fault in words. Those that say themselves what is expected are of type value_error."""
    kind, said = fault["type"], str(fault["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return "unknown field"
    if kind == "missing":
        return "it must be there, and did not come"
    if kind == "value_error":
        return f"{said}, {came(fault['input'])} came"
    if kind not in _EXPECTED:
        return said
    limits = {name: int(value) if _whole(value) else value for name, value in fault.get("ctx", {}).items()}
    return f"{_EXPECTED[kind].format_map(limits)} is expected, {came(fault['input'])} came"


def came(value: Any) -> str:
    """A value of a client, fit to be sent back: short ones as in JSON, of long ones what they are."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"{value!r}"
    if isinstance(value, str):
        return repr(value) if len(value) <= MAX_SHOWN else f"a string of {len(value)} characters"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"


def _whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()
