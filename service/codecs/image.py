"""The image codec: pictures to grids of codes, and back.

A codec is a folder: image_codec.json (ImageCodecConfig) and image_codec.safetensors. Pickles are never read.
"""

from __future__ import annotations

import io
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from service.codecs.image_network import Decoder, Encoder, ImageCodecConfig
from service.codecs.pictures import MAX_PIXELS, read_picture
from service.codecs.vector_quantizer import Codebook
from service.models.files import read_tensors, tensor_problems, value_problems

CONFIG_FILE = "image_codec.json"
WEIGHTS_FILE = "image_codec.safetensors"


class ImageCodec(nn.Module):
    """Encoder, codebook and decoder, in fp32 on the CPU or wherever it is moved."""

    def __init__(self, config: ImageCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.codebook = Codebook(torch.zeros(config.codes, config.code_width))
        self.decoder = Decoder(config)

    @classmethod
    def load(cls, folder: Path) -> ImageCodec:
        """Read a codec's folder, in eval mode. Raises ValueError that says which file is wrong and how."""
        path = folder / CONFIG_FILE
        try:
            values = json.loads(path.read_text("utf-8"))
            if not isinstance(values, dict):
                raise ValueError(f"an object, got {values!r}")
            config = ImageCodecConfig.from_json(values)
        except OSError as error:
            raise ValueError(f"{folder} has no image codec: cannot read {path} ({error.strerror})") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        codec = cls(config).eval().requires_grad_(False)
        tensors = read_tensors(folder / WEIGHTS_FILE)
        problems = tensor_problems(tensors, {name: tuple(t.shape) for name, t in codec.state_dict().items()})
        problems += value_problems(tensors)
        if problems:
            raise ValueError(f"{folder / WEIGHTS_FILE} does not match its config:\n  " + "\n  ".join(problems))
        codec.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return codec

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the two files into `folder`, made if need be. `dtype` is that of the weights' file."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().to(dtype).contiguous().cpu() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(self.config.to_json(), indent=2) + "\n", "utf-8")

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """images [b, C, H, W] in 0..1 -> codes [b, h * w] int64, row by row."""
        expected = (self.config.channels, *self.config.size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"images [b, {', '.join(map(str, expected))}] are expected; got {list(images.shape)}")
        return self.codebook.encode(self.encoder(images.float())).flatten(1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """codes [b, h * w] -> images [b, C, H, W] float32 in 0..1. Raises ValueError where a code is out of range."""
        if codes.dim() != 2 or codes.shape[1] != self.config.tokens:
            raise ValueError(f"codes [b, {self.config.tokens}] are expected; got {list(codes.shape)}")
        features = self.codebook.decode(codes.reshape(-1, *self.config.grid))
        return torch.sigmoid(self.decoder(features))

    def read(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Tensor:
        """A picture's file -> codes [h * w] int64: `read_picture`'s conversions and errors, then `encode`."""
        pixels = torch.from_numpy(read_picture(data, self.config, max_pixels=max_pixels))
        return self.encode(pixels[None])[0]

    @cached_property
    def blank(self) -> Tensor:
        """Codes [h * w] of an image that is background all over, by the weights that it is first asked for with."""
        colour = torch.tensor(self.config.background).view(1, -1, 1, 1)
        return self.encode(colour.expand(1, -1, *self.config.size))[0]

    def png(self, codes: Tensor, rows: int | None = None) -> bytes:
        """An image's PNG. With `rows`, only that many rows of the grid have arrived: below them is background.

        codes [h * w], or with `rows` at least the first rows * w of them; later ones are not looked at.
        """
        height, width = self.config.grid
        rows = height if rows is None else rows
        if not 0 <= rows <= height:
            raise ValueError(f"rows: 0 to {height}, got {rows}")
        if codes.dim() != 1 or not rows * width <= len(codes) <= self.config.tokens:
            raise ValueError(f"codes of {rows} rows of {width} are expected; got {list(codes.shape)}")
        shown = codes.long()[: rows * width]
        if rows < height:
            shown = torch.cat([shown, self.blank[rows * width :]])
        image = self.decode(shown[None])[0]
        image[:, rows * self.config.row_pixels :] = torch.tensor(self.config.background).view(-1, 1, 1)
        return _png(image)


def _png(image: Tensor) -> bytes:
    """image [C, H, W] in 0..1."""
    levels: Any = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    out = io.BytesIO()
    Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(out, "PNG", optimize=True)
    return out.getvalue()
