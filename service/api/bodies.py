"""From a request's bytes to plain values: bounded reading, JSON, safetensors. No route's meaning is here."""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from starlette.requests import Request

from service.errors import BadRequest, InvalidInput, TooLarge, UnsupportedMedia

MAX_HEADER_BYTES = 64 * 1024  # of a safetensors header: a handful of tensors and options
_NO_NUMBER = re.compile("NaN|Infinity")  # as many writers of JSON have them
_FLOATS: Mapping[str, type] = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def media_type(request: Request, *allowed: str) -> str:
    """The request's content type without parameters, one of `allowed`. Raises UnsupportedMedia."""
    given, *parameters = request.headers.get("content-type", "").split(";")
    kind = given.strip().lower()
    expected = ", ".join(allowed)
    if kind not in allowed:
        came = f"Content-Type {kind[:100]!r}" if kind else "no Content-Type"
        raise UnsupportedMedia(f"{came} came; one of these is expected: {expected}")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise UnsupportedMedia(f"Content-Encoding {encoding[:100]!r}; bodies are read uncompressed")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip().strip('"').lower() not in ("utf-8", "utf8", "us-ascii"):
            raise UnsupportedMedia(f"charset {value.strip()[:100]!r}; text is read as utf-8")
    return kind


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises TooLarge as soon as it is known to be over, ClientDisconnect."""
    declared = request.headers.get("content-length", "")
    too_large = TooLarge(f"the body is over the limit of {max_bytes} bytes")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise too_large
    chunks: list[bytes] = []
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > max_bytes:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


def parse_json(body: bytes, what: str = "the body") -> Any:
    """Strict JSON (RFC 8259: no NaN, no Infinity). Raises BadRequest, for nesting over orjson's 1024 levels too."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"{what} is not readable JSON: {_trouble(body, error)}") from None


def _trouble(body: bytes, error: orjson.JSONDecodeError) -> str:
    """What orjson stumbled over, and at which byte: it counts characters, and tells nothing of bytes that are none."""
    try:
        text = body.decode()
    except UnicodeDecodeError as wrong:
        return f"not utf-8 at byte {wrong.start}"
    at = len(text[: error.pos].encode())
    if word := _NO_NUMBER.match(text, error.pos):
        return f"{word[0]} at byte {at}; JSON has finite numbers only"
    return f"{error.msg} at byte {at}"


def parse_base64(data: str, loc: tuple[str | int, ...], max_bytes: int | None = None) -> bytes:
    """Strict base64: padded, no line breaks. Raises InvalidInput; TooLarge before more than max_bytes are decoded."""
    size = len(data) * 3 // 4 - data[-2:].count("=")
    if max_bytes is not None and size > max_bytes:
        raise TooLarge.at(loc, f"the file has {size} bytes; at most {max_bytes} are allowed")
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except ValueError as error:  # binascii.Error, and str with characters beyond ASCII
        raise InvalidInput.at(loc, f"not base64: {str(error).lower()}") from None


@dataclass(frozen=True)
class Tensors:
    """A safetensors body: floating tensors in their shapes (bf16 widened to float32), and the metadata."""

    tensors: dict[str, NDArray[Any]]
    metadata: dict[str, str]


def parse_safetensors(body: bytes, *, sound: bool = False) -> Tensors:
    """Raises BadRequest where the format is broken, InvalidInput where a tensor is not of floats.

    sound: samples of 16 bits are read too.
    """
    header_bytes = int.from_bytes(body[:8], "little")
    if header_bytes > min(MAX_HEADER_BYTES, len(body) - 8):
        raise BadRequest(
            f"the safetensors header claims {header_bytes} bytes; {max(0, len(body) - 8)} follow its length, "
            f"and at most {MAX_HEADER_BYTES} are read"
        )
    try:
        entries = deserialize(body)  # type: ignore[no-untyped-call]
        metadata = orjson.loads(body[8 : 8 + header_bytes]).get("__metadata__") or {}
    except (SafetensorError, orjson.JSONDecodeError) as error:
        raise BadRequest(f"the body is not safetensors: {error}") from None
    kinds = {**_FLOATS, "I16": np.int16} if sound else _FLOATS
    return Tensors({name: _array(name, entry, kinds) for name, entry in entries}, metadata)


def _array(name: str, entry: dict[str, Any], kinds: Mapping[str, type]) -> NDArray[Any]:
    kind, shape, data = entry["dtype"], entry["shape"], entry["data"]
    if kind == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if kind not in kinds:
        raise InvalidInput.at((name,), f"dtype {kind} came; F32, F16 or BF16 is expected")
    return np.frombuffer(data, kinds[kind]).reshape(shape)
