"""Pictures in a terminal."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RAMP = " .:-=+*#%@"
MAX_COLUMNS = 96
_RESET = "\x1b[0m"


def drawn(png: bytes, *, colour: bool) -> str:
    """A picture's file as lines of characters.

    colour: half blocks, two pixels a character, in 24-bit colours. Otherwise two characters of a ramp of ten a pixel,
    light on dark. What is wider than MAX_COLUMNS is scaled down.
    """
    with Image.open(io.BytesIO(png)) as picture:
        most = MAX_COLUMNS if colour else MAX_COLUMNS // 2
        scale = min(1.0, most / picture.width)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        pixels = np.asarray(picture.convert("RGB" if colour else "L").resize(size))
    if not colour:
        levels: list[list[int]] = (pixels.astype(int) * len(RAMP) // 256).tolist()
        return "\n".join("".join(RAMP[level] * 2 for level in row).rstrip() for row in levels)
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, np.zeros_like(pixels[:1])])
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        blocks = (f"\x1b[38;2;{_rgb(over)};48;2;{_rgb(under)}m▀" for over, under in zip(upper, lower, strict=True))
        lines.append("".join(blocks) + _RESET)
    return "\n".join(lines)


def _rgb(pixel: NDArray[np.uint8]) -> str:
    return ";".join(str(level) for level in pixel)
