"""Reading bytes: the depth of JSON, safetensors of few bits."""

from __future__ import annotations

import json
import struct
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.bodies import json_depth, parse_json, parse_safetensors
from service.errors import BadRequest

documents = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text('[]{}"\\ab'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('[]{}"\\', max_size=3), inner, max_size=4),
    max_leaves=30,
)


def depth_of(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 0


@given(document=documents)
def test_depth_is_that_of_brackets_outside_strings(document: Any) -> None:
    assert json_depth(json.dumps(document).encode()) == depth_of(document)


def test_depth_across_blocks() -> None:
    assert json_depth(b"[" * 3 + b"[]," * 2**20 + b"[[") == 5
    assert json_depth(b"[" * (2**20 + 7) + b"]" * (2**20 + 7)) == 2**20 + 7


@pytest.mark.parametrize("body", [b'"' + b'\\"' * 2**22, b'"' * 2**23, b"\\" * 2**23, b"[" * 2**23])
def test_depth_takes_linear_time(body: bytes) -> None:
    began = time.process_time()
    json_depth(body)
    assert time.process_time() - began < 5


def test_the_deepest_that_is_read_is_read() -> None:
    assert parse_json(b"[[[1]]]", 3) == [[[1]]]
    with pytest.raises(BadRequest, match="nested 3 deep, at most 2"):
        parse_json(b"[[[1]]]", 2)


def test_bf16_is_widened() -> None:
    values = np.array([[1.0, -2.5, 3.140625], [0.0, 1e30, -1e-30]], np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    header = json.dumps(
        {"__metadata__": {"model": "x"}, "audio": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}
    ).encode()
    content = parse_safetensors(struct.pack("<Q", len(header)) + header + halves.tobytes())
    np.testing.assert_array_equal(content.tensors["audio"], (halves.astype(np.uint32) << 16).view(np.float32))
    np.testing.assert_allclose(content.tensors["audio"], values, rtol=2**-7)
    assert content.metadata == {"model": "x"}


def test_a_scalar_and_an_empty_tensor_keep_their_shapes() -> None:
    header = (
        b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"b":{"dtype":"F16","shape":[0,5],"data_offsets":[4,4]}}'
    )
    content = parse_safetensors(struct.pack("<Q", len(header)) + header + bytes(4))
    assert content.tensors["a"].shape == ()
    assert content.tensors["b"].shape == (0, 5)
