from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from service.codecs.image import CONFIG_FILE, WEIGHTS_FILE, ImageCodec
from service.codecs.image_network import ImageCodecConfig

GREY = ImageCodecConfig(codes=32, code_width=4, widths=(4, 8), blocks=1)
RGB = replace(GREY, size=(32, 64), channels=3, grid=(4, 8), widths=(4, 6, 8), background=(1.0, 0.5, 0.0))


def a_codec(config: ImageCodecConfig = GREY) -> ImageCodec:
    """Untrained, with codes spread over what the encoder gives for noise, so that all sorts of codes occur."""
    torch.manual_seed(0)
    codec = ImageCodec(config).eval().requires_grad_(False)
    noise = torch.rand(64, config.channels, *config.size)
    features = codec.encoder(noise).reshape(-1, config.code_width)
    codec.codebook.codes.copy_(features[torch.randperm(len(features))[: config.codes]])
    return codec


def some_images(config: ImageCodecConfig, n: int = 3) -> torch.Tensor:
    return torch.rand(n, config.channels, *config.size, generator=torch.Generator().manual_seed(1))


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("config", [GREY, RGB], ids=["grey", "rgb"])
def test_images_become_codes_row_by_row_and_codes_images(config):
    codec = a_codec(config)
    images = some_images(config)
    codes = codec.encode(images)
    assert codes.shape == (3, config.tokens)
    assert codes.dtype == torch.int64
    assert len(codes.unique()) > 4
    decoded = codec.decode(codes)
    assert decoded.shape == images.shape
    assert 0 <= decoded.min() < decoded.max() <= 1
    features = codec.encoder(images)
    assert codes[1, config.grid[1] + 2] == codec.codebook.encode(features[1, 1, 2])


def test_a_saved_codec_codes_as_before(tmp_path):
    codec = a_codec()
    codec.save(tmp_path, torch.float32)
    again = ImageCodec.load(tmp_path)
    images = some_images(GREY)
    assert again.config == GREY
    assert torch.equal(again.encode(images), codec.encode(images))
    assert torch.equal(again.decode(codec.encode(images)), codec.decode(codec.encode(images)))
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())


def test_weights_are_kept_in_half_precision_and_used_in_full(tmp_path):
    a_codec().save(tmp_path)
    assert {t.dtype for t in load_file(tmp_path / WEIGHTS_FILE).values()} == {torch.float16}
    assert {t.dtype for t in ImageCodec.load(tmp_path).state_dict().values()} == {torch.float32}


def test_a_file_of_other_tensors_is_refused_with_all_that_is_wrong(tmp_path):
    a_codec().save(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    del tensors["encoder.out.bias"]
    tensors["extra"] = torch.zeros(1)
    tensors["codebook.codes"] = tensors["codebook.codes"][:31]
    tensors["decoder.into.bias"] = tensors["decoder.into.bias"] * float("nan")
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"image_codec\.safetensors does not match") as raised:
        ImageCodec.load(tmp_path)
    for part in ("missing encoder.out.bias [4]", "unexpected extra", "[31, 4], expected [32, 4]", "not finite"):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"colour": 1}, "unknown entries"),
        ({"codes": None}, "missing entries"),
        ({"format": 2}, "format"),
        ({"grid": [7, 8]}, "grid"),
        ({"channels": 2}, "channels"),
        ({"codes": 0}, "codes"),
        ({"codes": 32.0}, "codes"),
        ({"size": 28}, "size"),
        ({"background": [0.0, 0.0]}, "background"),
        ({"background": [2.0]}, "background"),
        ({"widths": []}, "widths"),
        ({"normalise_polarity": 1}, "normalise_polarity"),
    ],
)
def test_a_wrong_config_is_refused_by_name(tmp_path, change, says):
    a_codec().save(tmp_path)
    values = {**json.loads((tmp_path / CONFIG_FILE).read_text()), **change}
    (tmp_path / CONFIG_FILE).write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    with pytest.raises(ValueError, match=says) as raised:
        ImageCodec.load(tmp_path)
    assert CONFIG_FILE in str(raised.value)


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_a_config_that_is_no_object_is_refused(tmp_path, text):
    a_codec().save(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(text)
    with pytest.raises(ValueError, match=CONFIG_FILE):
        ImageCodec.load(tmp_path)


def test_a_folder_without_a_codec_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no image codec"):
        ImageCodec.load(tmp_path)


def test_polarity_of_colours_is_not_defined():
    with pytest.raises(ValueError, match="grey"):
        replace(RGB, normalise_polarity=True)


@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 1, 28, 27), (2, 3, 28, 28)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[b, 1, 28, 28\]"):
        a_codec().encode(torch.zeros(shape))


def test_codes_of_another_number_or_out_of_range_are_refused():
    codec = a_codec()
    with pytest.raises(ValueError, match=r"\[b, 49\]"):
        codec.decode(torch.zeros(2, 48, dtype=torch.int64))
    with pytest.raises(ValueError, match="0 to 31"):
        codec.decode(torch.full((1, 49), 32))


@pytest.mark.parametrize("config", [GREY, RGB], ids=["grey", "rgb"])
def test_a_png_holds_the_decoded_image(config):
    codec = a_codec(config)
    codes = codec.encode(some_images(config))[0]
    pixels = pixels_of(codec.png(codes))
    decoded = codec.decode(codes[None])[0]
    expected = (decoded[0] if config.channels == 1 else decoded.permute(1, 2, 0)).numpy() * 255
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - expected).max() <= 0.5 + 1e-3


def test_the_rows_that_have_not_arrived_are_background():
    codec = a_codec(RGB)
    codes = codec.encode(some_images(RGB))[0]
    partial = pixels_of(codec.png(codes[:16], rows=2))
    assert partial.shape == (32, 64, 3)
    assert (partial[16:] == [255, 128, 0]).all()
    assert not (pixels_of(codec.png(codes))[16:] == [255, 128, 0]).all()


def test_the_rows_that_have_arrived_are_those_of_the_whole():
    """Out of the reach of the decoder's convolutions, which see what follows as background until it comes."""
    codec = a_codec()
    codes = codec.encode(some_images(GREY))[0]
    partial, whole = pixels_of(codec.png(codes, rows=6)), pixels_of(codec.png(codes))
    assert np.array_equal(partial[:4], whole[:4])
    assert len(np.unique(partial[:4])) > 1


def test_an_unfinished_image_ends_as_if_background_followed():
    codec = a_codec()
    codes = codec.encode(some_images(GREY))[0]
    followed = torch.cat([codes[:21], codec.encode(torch.zeros(1, 1, 28, 28))[0, 21:]])
    assert np.array_equal(pixels_of(codec.png(codes, rows=3))[:12], pixels_of(codec.png(followed))[:12])


def test_background_is_encoded_once_for_all_rows_and_pictures(monkeypatch):
    codec, encoded = a_codec(), []
    codes = codec.encode(some_images(GREY))[0]
    monkeypatch.setattr(codec, "encode", lambda images: encoded.append(images) or type(codec).encode(codec, images))
    for rows in range(1, 7):
        codec.png(codes, rows=rows)
    assert len(encoded) == 1


def test_codes_beyond_the_rows_are_not_looked_at():
    codec = a_codec()
    codes = codec.encode(some_images(GREY))[0]
    other = torch.cat([codes[:21], (codes[21:] + 1) % 32])
    assert codec.png(codes, rows=3) == codec.png(other, rows=3) == codec.png(codes[:23], rows=3)
    assert (pixels_of(codec.png(codes[:0], rows=0)) == 0).all()


@pytest.mark.parametrize(("codes", "rows"), [(48, None), (50, None), (13, 2), (49, 8), (49, -1)])
def test_pngs_of_the_wrong_number_of_codes_are_refused(codes, rows):
    with pytest.raises(ValueError, match=r"rows|codes"):
        a_codec().png(torch.zeros(codes, dtype=torch.int64), rows=rows)


@pytest.mark.parametrize("config", [GREY, RGB], ids=["grey", "rgb"])
def test_a_picture_of_the_codecs_own_size_is_read_without_loss(config):
    codec = a_codec(config)
    levels = (some_images(config)[:1] * 255).round().to(torch.uint8)
    pixels = levels[0].permute(1, 2, 0).numpy()
    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if config.channels == 1 else pixels).save(out, "PNG")
    assert torch.equal(codec.read(out.getvalue()), codec.encode(levels.float() / 255)[0])
