"""Reading bytes: the depth of JSON, safetensors of few bits."""

from __future__ import annotations

import json
import struct
import time

import numpy as np
import pytest

from service.api.bodies import parse_base64, parse_json, parse_safetensors
from service.errors import BadRequest, InvalidInput, TooLarge


@pytest.mark.parametrize("body", [b"[" * 2**24, b'{"a":' * 2**20, b"[" * 1025 + b"]" * 1025])
def test_deep_json_is_refused_at_once(body: bytes) -> None:
    began = time.process_time()
    with pytest.raises(BadRequest, match="depth"):
        parse_json(body)
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"x": NaN}', "NaN at byte 6; JSON has finite numbers only"),
        (b'{"x": [1, -Infinity]}', "Infinity at byte 11; JSON has finite numbers only"),
        (b'{"\xc3\xa9": Infinity}', "Infinity at byte 7; JSON has finite numbers only"),
        (b'{"\xc3\xa9": x}', "at byte 7$"),
        (b'{"a": "\xff"}', "the body is not readable JSON: not utf-8 at byte 7"),
        (b"", "zero-length"),
    ],
)
def test_what_is_no_json_is_told_by_its_byte(body: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        parse_json(body)


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


def test_base64_is_measured_before_it_is_decoded() -> None:
    assert parse_base64("AAECAw==", ("data",), 4) == bytes([0, 1, 2, 3])
    with pytest.raises(TooLarge, match="4 bytes; at most 3"):
        parse_base64("AA!CAw==", ("data",), 3)
    with pytest.raises(InvalidInput, match="not base64"):
        parse_base64("AA!CAw==", ("data",), 4)
