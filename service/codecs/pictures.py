"""Files to pixels: whatever picture a client has, as the float32 array that an image codec was trained on.

Only the formats listed are opened, and a picture's size is taken from its header before anything is decoded.
A damaged file is refused, whole. Of an animation, the first picture is read.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.codecs.image_network import ImageCodecConfig
from service.errors import InvalidInput, TooLarge

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 16_000_000
# The border that tells the ground from the ink is this part of the shorter side: one pixel of an MNIST digit.
BORDER = 1 / 28

Pixels = NDArray[np.float32]


def read_picture(data: bytes, config: ImageCodecConfig, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """A picture's file as the codec sees it. -> [C, H, W] float32 in 0..1.

    Turned as its EXIF says; transparency becomes config.background; grey by ITU-R 601 where the codec is grey; scaled
    with antialiasing to fit, proportions kept, centred on the background. Nothing is lost where the file has the
    codec's size and channels already. 16 bits a level become 8.

    With config.normalise_polarity, a picture whose border (its median) is nearer to the opposite of the background
    than to the background is inverted: black on white is read as white on black. Where the border is transparent, the
    ground has no colour of its own, and is taken to be the opposite of the ink.

    Raises InvalidInput where the file is of another kind, damaged or cut off; TooLarge over `max_pixels`. Neither
    names a field: the caller knows which it was.
    """
    picture = _opened(data, max_pixels)
    picture = _flat(picture, config)
    if config.normalise_polarity and _far(_median_border(picture), config):
        picture = ImageOps.invert(picture)
    height, width = config.size
    scale = min(width / picture.width, height / picture.height)
    fitted = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if fitted != picture.size:
        picture = picture.resize(fitted, Image.Resampling.BICUBIC)
    ground = Image.new(picture.mode, (width, height), _colour(config.background))
    ground.paste(picture, ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
    pixels: Pixels = np.asarray(ground, np.float32) / np.float32(255)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    """The decoded picture, upright."""
    if not data:
        raise InvalidInput("the file is empty")
    # Pillow meets damage with whatever its parsers raise: struct.error, SyntaxError, IndexError, OSError and more.
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            width, height = header.size
            if width * height <= max_pixels:
                header.verify()  # a PNG's checksums, which decoding leaves out
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the picture has far more than the {max_pixels} pixels that are allowed") from error
    except Exception as error:
        kinds = ", ".join(FORMATS)
        raise InvalidInput(f"the file cannot be read as a picture ({kinds}): of another kind or damaged") from error
    if width * height > max_pixels:
        raise TooLarge(f"the picture has {width} x {height} pixels; at most {max_pixels} in all are allowed")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        picture.load()
        return ImageOps.exif_transpose(picture)
    except Exception as error:
        raise InvalidInput("the picture is damaged or cut off") from error


def _flat(picture: Image.Image, config: ImageCodecConfig) -> Image.Image:
    """Without transparency, in 8 bits a level: mode L or RGB, as config.channels says."""
    mode = "L" if config.channels == 1 else "RGB"
    if picture.mode.startswith("I"):
        transparent = picture.info.get("transparency")
        levels = np.asarray(picture).astype(np.int64).clip(0, 65_535)
        picture = Image.fromarray(((levels * 255 + 32_767) // 65_535).astype(np.uint8))
        if isinstance(transparent, int):
            picture.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    if not picture.has_transparency_data:
        return picture.convert(mode)
    picture = picture.convert("RGBA")
    background = config.background
    if config.normalise_polarity:
        alpha = np.asarray(picture.getchannel("A"))
        ink = np.asarray(picture.convert("RGB").convert("L"))[alpha > 127]
        if _median_border(picture.getchannel("A")) < 128 and ink.size and not _far(float(ink.mean()), config):
            background = tuple(1 - level for level in background)
    colour = _colour(background)
    ground = Image.new("RGBA", picture.size, (*colour, 255) if len(colour) == 3 else (*colour * 3, 255))
    return Image.alpha_composite(ground, picture).convert("RGB").convert(mode)


def _median_border(picture: Image.Image) -> float:
    """Median level, 0..255, of the outermost pixels of a picture of one channel."""
    levels = np.asarray(picture)
    height, width = levels.shape
    deep = max(1, round(min(height, width) * BORDER))
    inner = np.zeros(levels.shape, np.bool_)
    inner[deep : height - deep, deep : width - deep] = True
    return float(np.median(levels[~inner]))


def _far(level: float, config: ImageCodecConfig) -> bool:
    """Whether a grey level, 0..255, is nearer to the opposite of the background than to the background."""
    background = config.background[0]
    return bool(abs(level / 255 - background) > abs(level / 255 - (1 - background)))


def _colour(background: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(round(level * 255) for level in background)
