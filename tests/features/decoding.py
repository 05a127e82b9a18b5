"""Decoding as the tests of it ask for it."""

from __future__ import annotations

import pytest

from service.errors import InvalidInput
from service.features.limits import MediaLimits
from service.features.media import decode_audio
from tests.features.signals import Samples

FIELD = ("media", "audio")
LIMITS = MediaLimits()


def decode(data: bytes, limits: MediaLimits = LIMITS) -> Samples:
    return decode_audio(data, field=FIELD, limits=limits)


def refused(data: bytes) -> str:
    with pytest.raises(InvalidInput) as caught:
        decode(data)
    assert caught.value.errors[0].loc == FIELD
    return caught.value.detail
