"""What a client may ask of the sampler."""

from __future__ import annotations

from typing import Any

import pytest

from service.engine.params import modes_of
from service.errors import InvalidInput
from tests.generators import params, text_vocabulary, tiny_vocabulary

TRIO = tiny_vocabulary(image_codes=4, speech_codes=(1, 5))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"mode": "image-only", "max_tokens": 6},
        {"mode": "speech-only", "max_tokens": 3},
        {"max_tokens": 1, "n": 9, "logprobs": 20, "guidance_scale": 0.0, "seed": 2**64 - 1},
        {"temperature": 10, "top_p": 1e-9, "top_k": 10**9, "repetition_penalty": 10.0},
    ],
)
def test_what_can_be_followed_passes(given: dict[str, Any]) -> None:
    params(TRIO, **given).check(TRIO)


@pytest.mark.parametrize(
    ("given", "loc", "message"),
    [
        ({"mode": "video-only"}, ("mode",), "knows text-only, image-only, speech-only, interleaved, not 'video-only'"),
        ({"max_tokens": 0}, ("max_tokens",), "at least 1, got 0"),
        ({"mode": "image-only", "max_tokens": 5}, ("max_tokens",), "one whole item, 6 tokens .* image-only, got 5"),
        ({"mode": "speech-only", "max_tokens": 2}, ("max_tokens",), "one whole item, 3 tokens"),
        ({"temperature": {"text": 1.0}}, ("temperature",), "each of text, image, speech is expected, got text"),
        ({"top_k": {"text": 1, "image": 1, "speech": 1, "video": 1}}, ("top_k",), "got text, image, speech, video"),
        ({"temperature": float("nan")}, ("temperature", "text"), "from 0 to 10, got nan"),
        ({"temperature": -0.1}, ("temperature", "text"), "from 0 to 10"),
        ({"top_p": {"text": 1.0, "image": 0.0, "speech": 1.0}}, ("top_p", "image"), "over 0"),
        ({"top_p": 1.1}, ("top_p", "text"), "at most 1"),
        ({"top_k": -1}, ("top_k", "text"), "at least 0"),
        ({"guidance_scale": float("inf")}, ("guidance_scale",), "from 0 to 100, got inf"),
        ({"repetition_penalty": 0.0}, ("repetition_penalty",), "from 0.1 to 10"),
        ({"seed": -1}, ("seed",), "an integer from 0"),
        ({"seed": 2**64}, ("seed",), "an integer from 0"),
        ({"n": 0}, ("n",), "at least 1"),
        ({"stop": (b"x", b"")}, ("stop",), "not empty"),
        ({"logprobs": 21}, ("logprobs",), "from 0 to 20"),
    ],
)
def test_what_cannot_names_its_field(given: dict[str, Any], loc: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as refusal:
        params(TRIO, **given).check(TRIO)
    assert [error.loc for error in refusal.value.errors] == [loc]


def test_a_model_of_text_has_no_mode_of_media() -> None:
    vocabulary = text_vocabulary()
    assert modes_of(vocabulary) == ("text-only", "interleaved")
    with pytest.raises(InvalidInput, match="mode: this model knows text-only, interleaved, not 'image-only'"):
        params(vocabulary, mode="image-only").check(vocabulary)
