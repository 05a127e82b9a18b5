from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.codecs.image_network import ImageCodecConfig
from service.codecs.pictures import read_picture
from service.errors import InvalidInput, ServiceError, TooLarge

GREY = ImageCodecConfig()
POLAR = replace(GREY, normalise_polarity=True)
RGB = replace(GREY, size=(16, 32), grid=(4, 8), channels=3, background=(1.0, 0.0, 0.5))
# An L: it looks different turned, mirrored or inverted.
GLYPH = np.zeros((28, 28), np.uint8)
GLYPH[5:23, 8:12] = 255
GLYPH[19:23, 8:20] = 255


def file_of(picture: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def read(data: bytes, config: ImageCodecConfig = GREY, **options: Any) -> np.ndarray:
    pixels = read_picture(data, config, **options)
    assert pixels.dtype == np.float32
    assert pixels.shape == (config.channels, *config.size)
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    return pixels


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 0, before: bytes = b"") -> bytes:
    """A PNG by hand. rows: each with its filter byte."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP"])
def test_formats_without_loss_are_read_exactly(kind):
    data = file_of(GLYPH, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(read(data)[0], GLYPH / np.float32(255))


def test_a_jpeg_is_read():
    assert np.abs(read(file_of(GLYPH, "JPEG", quality=95))[0] - GLYPH / 255).max() < 0.1


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
def test_colour_modes_are_converted(mode):
    assert np.array_equal(read(file_of(Image.fromarray(GLYPH).convert(mode)))[0], GLYPH / np.float32(255))


def test_cmyk_is_converted():
    data = file_of(Image.fromarray(GLYPH).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(read(data)[0] - GLYPH / 255).max() < 0.1


def test_colours_become_grey_by_their_luminance():
    picture = np.full((28, 28, 3), (255, 0, 0), np.uint8)
    assert np.allclose(read(file_of(picture)), 0.299, atol=0.005)


def test_grey_becomes_colour():
    pixels = read(file_of(np.full((16, 32), 51, np.uint8)), RGB)
    assert np.allclose(pixels, 0.2)


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65_535, 28 * 28).round().astype(np.uint16).reshape(28, 28)
    assert np.abs(read(file_of(ramp))[0] - ramp / 65_535).max() <= 0.5 / 255 + 1e-6


def test_sixteen_bits_with_a_transparent_level():
    levels = np.full((28, 28), 65_535, ">u2")
    levels[:, 14:] = 40_000
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    pixels = read(png(28, 28, rows, depth=16, before=chunk(b"tRNS", struct.pack(">H", 40_000))))
    assert (pixels[0, :, :14] == 1).all()
    assert (pixels[0, :, 14:] == 0).all()


def test_transparency_becomes_the_background():
    rgba = np.zeros((16, 32, 4), np.uint8)
    rgba[..., 1] = 255
    rgba[:, 16:, 3] = 255
    pixels = read(file_of(rgba), RGB)
    assert np.allclose(pixels[:, 0, 0], (1, 0, 0.5), atol=0.003)
    assert np.allclose(pixels[:, 0, 31], (0, 1, 0), atol=0.003)


def test_a_transparent_palette_entry_becomes_the_background():
    palette = Image.new("P", (28, 28), 1)
    palette.putpalette([255, 255, 255, 0, 0, 0])
    palette.paste(0, (0, 0, 14, 28))
    assert (read(file_of(palette))[0, :, :14] == 1).all()
    assert (read(file_of(palette, transparency=0))[0] == 0).all()


def test_half_transparent_is_half_background():
    rgba = np.full((28, 28, 4), 255, np.uint8)
    rgba[..., 3] = 128
    assert np.allclose(read(file_of(rgba)), 128 / 255, atol=0.005)


@pytest.mark.parametrize(("width", "height"), [(56, 14), (14, 56), (280, 70), (7, 28)])
def test_proportions_are_kept_and_the_rest_is_background(width, height):
    pixels = read(file_of(np.full((height, width), 255, np.uint8)))[0]
    scale = min(28 / width, 28 / height)
    rows, columns = round(height * scale), round(width * scale)
    lit = pixels > 0.5
    assert (lit.any(axis=1).sum(), lit.any(axis=0).sum()) == (rows, columns)
    assert lit.sum() == rows * columns
    centre = np.argwhere(lit).mean(axis=0)
    assert np.abs(centre - 13.5).max() <= 0.5


def test_a_padded_picture_has_the_background_of_the_config():
    pixels = read(file_of(np.zeros((16, 16, 3), np.uint8)), RGB)
    assert np.allclose(pixels[:, 8, 0], (1, 0, 0.5), atol=0.003)
    assert (pixels[:, 8, 16] == 0).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (4000, 1), (1, 4000)])
def test_extreme_shapes_are_read(width, height):
    assert read(file_of(np.full((height, width), 255, np.uint8))).max() > 0.9


def test_shrinking_averages():
    """Lines one pixel wide are grey afterwards, none of them lost or kept by chance."""
    lines = np.zeros((280, 280), np.uint8)
    lines[:, ::2] = 255
    assert np.abs(read(file_of(lines))[0, 3:-3, 3:-3] - 0.5).max() < 0.02


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_obeyed(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate clockwise by 90° to view
    data = file_of(Image.fromarray(GLYPH).rotate(90), kind, exif=exif, quality=95)
    assert np.abs(read(data)[0] - GLYPH / 255).max() < 0.15


def test_the_first_picture_of_an_animation_is_read():
    frames = [Image.fromarray(GLYPH), Image.fromarray(255 - GLYPH)]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(read(data)[0], GLYPH / np.float32(255))


@pytest.mark.parametrize("noise", [0, 60])
def test_black_on_white_is_inverted_where_the_config_says_so(noise):
    draw = np.random.default_rng(0)
    paper = (255 - GLYPH.astype(np.int64)) - draw.integers(0, noise + 1, GLYPH.shape)
    data = file_of(paper.clip(0, 255).astype(np.uint8))
    assert np.abs(read(data, POLAR)[0] - GLYPH / 255).max() <= noise / 255 + 1e-6
    assert read(data, GREY)[0, 0, 0] > 0.5


def test_white_on_black_is_not_inverted():
    assert np.array_equal(read(file_of(GLYPH), POLAR)[0], GLYPH / np.float32(255))


def test_a_glyph_that_crosses_the_border_does_not_set_the_polarity():
    crossing = GLYPH.copy()
    crossing[:, 8:12] = 255
    assert np.array_equal(read(file_of(crossing), POLAR)[0], crossing / np.float32(255))


def test_the_padding_of_an_inverted_picture_is_background():
    pixels = read(file_of(255 - GLYPH[:, 4:24]), POLAR)[0]
    assert (pixels[:, :4] == 0).all()
    assert np.array_equal(pixels, GLYPH / np.float32(255))


@pytest.mark.parametrize("ink", [0, 255])
def test_ink_of_either_colour_on_a_transparent_ground_is_light_on_dark(ink):
    rgba = np.full((28, 28, 4), ink, np.uint8)
    rgba[..., 3] = GLYPH
    assert np.array_equal(read(file_of(rgba), POLAR)[0], GLYPH / np.float32(255))


def test_transparent_corners_do_not_change_the_polarity():
    rgba = np.dstack([GLYPH, GLYPH, GLYPH, np.full_like(GLYPH, 255)])
    rgba[:2, :2, 3] = rgba[-2:, -2:, 3] = 0
    assert np.array_equal(read(file_of(rgba), POLAR)[0], GLYPH / np.float32(255))


def test_a_picture_that_is_transparent_all_over_is_background():
    assert (read(file_of(np.zeros((28, 28, 4), np.uint8)), POLAR) == 0).all()


def test_a_bomb_is_refused_by_its_header():
    with pytest.raises(TooLarge) as raised:
        read(png(50_000, 50_000, b"\0" * 50_001))
    assert "16000000" in raised.value.detail


@pytest.mark.parametrize("side", [4_001, 10_000, 14_000])
def test_the_limit_holds_under_that_of_the_library_too(side):
    with pytest.raises(TooLarge):
        read(png(side, side, b""))


def test_the_limit_is_the_callers():
    data = file_of(np.zeros((20, 30), np.uint8))
    read(data, max_pixels=600)
    with pytest.raises(TooLarge, match="30 x 20 pixels; at most 599"):
        read(data, max_pixels=599)


def test_an_error_names_no_field():
    with pytest.raises(ServiceError) as raised:
        read(b"GIF89a")
    assert raised.value.errors == ()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_file_that_is_cut_off_is_refused(kind, part):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    data = file_of(noise, kind)
    with pytest.raises(InvalidInput):
        read(data[: int(len(data) * part)])


def test_a_png_whose_checksum_is_wrong_is_refused():
    data = bytearray(file_of(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)))
    data[-14] ^= 1  # IDAT's checksum: IEND's twelve bytes follow it
    with pytest.raises(InvalidInput):
        read(bytes(data))


@pytest.mark.parametrize("data", [b"", b"nothing of the kind", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_other_files_are_refused(data):
    with pytest.raises(InvalidInput):
        read(data)


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM"])
def test_formats_that_are_not_listed_are_not_opened(kind):
    with pytest.raises(InvalidInput, match="PNG, JPEG, WEBP, GIF, BMP"):
        read(file_of(GLYPH, kind))
