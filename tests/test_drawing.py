"""Pictures in a terminal."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

from service.drawing import MAX_COLUMNS, drawn


def picture(levels: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.asarray(levels, np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_without_colours_a_pixel_is_two_characters_of_the_ramp() -> None:
    assert drawn(picture([[0, 128, 255], [255, 0, 0]]), colour=False) == "  ++@@\n@@"


def test_with_colours_a_character_is_two_pixels() -> None:
    art = drawn(picture([[[255, 0, 0]], [[0, 9, 0]], [[1, 2, 3]]]), colour=True)
    assert art.split("\n") == ["\x1b[38;2;255;0;0;48;2;0;9;0m▀\x1b[0m", "\x1b[38;2;1;2;3;48;2;0;0;0m▀\x1b[0m"]


def test_wide_pictures_are_scaled_to_fit() -> None:
    wide = picture(np.full((10, 500), 255))
    for colour in (False, True):
        for line in drawn(wide, colour=colour).split("\n"):
            assert 0 < len(re.sub("\x1b[^m]*m", "", line)) <= MAX_COLUMNS
