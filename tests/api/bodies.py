"""Requests in each encoding, for the tests of the routes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

JSON = {"Content-Type": "application/json"}
SAFETENSORS = {"Content-Type": "application/vnd.safetensors"}
JSON_LINES = {"Content-Type": "application/jsonl"}

Array = NDArray[np.float32]


def clip(seed: int = 0, **steps: int) -> dict[str, Array]:
    """Random features for the tiny checkpoint: `clip(audio=7)` is {"audio": [7, 5]}."""
    widths = {"text": 6, "audio": 5, "video": 4}
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal((count, widths[name])).astype(np.float32) for name, count in steps.items()}


def as_json(features: dict[str, Array], **fields: Any) -> dict[str, Any]:
    """Keyword arguments of a request that carries the features as JSON."""
    document = {"features": {name: rows.tolist() for name, rows in features.items()}, **fields}
    return {"content": json.dumps(document).encode(), "headers": JSON}


def as_safetensors(features: dict[str, Array], **metadata: str) -> dict[str, Any]:
    """Keyword arguments of a request that carries the features, or any tensors, as safetensors."""
    return {"content": save(features, metadata or None), "headers": SAFETENSORS}


def as_lines(*documents: Any) -> dict[str, Any]:
    """Keyword arguments of a batch; bytes are lines as they stand."""
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in documents]
    return {"content": b"\n".join(lines), "headers": JSON_LINES}


def as_form(body: bytes, boundary: str = "border") -> dict[str, Any]:
    """Keyword arguments of a request with a form written by hand."""
    return {"content": body, "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"}}
