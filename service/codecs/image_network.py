"""The convolutional halves of the image codec, and the config that sizes them.

    images [b, C, H, W] in 0..1 -> encoder -> [b, h, w, d] -> codebook -> codes [b, h * w] -> decoder -> images

A VQ-VAE (van den Oord et al., arXiv 1711.00937): halvings by strided convolutions, residual blocks at the grid's
resolution, doublings by pixel shuffle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

FORMAT = 1


@dataclass(frozen=True)
class ImageCodecConfig:
    """Sizes and conventions of an image codec.

    size               [height, width] in pixels, as the networks see images
    channels           1 (grey) or 3 (RGB)
    grid               rows and columns of codes; size / grid is the same power of two both ways
    codes              size of the codebook
    code_width         numbers in a code's vector
    widths             channels after each halving, from the pixels to the grid
    blocks             residual blocks at the grid's resolution, in the encoder and in the decoder
    background         colour of empty space in the training data, `channels` numbers in 0..1: transparency and
                       padding become it
    normalise_polarity grey only: images on a ground opposite to `background` are inverted
    """

    size: tuple[int, int] = (28, 28)
    channels: int = 1
    grid: tuple[int, int] = (7, 7)
    codes: int = 256
    code_width: int = 16
    widths: tuple[int, ...] = (32, 64)
    blocks: int = 2
    background: tuple[float, ...] = (0.0,)
    normalise_polarity: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError naming the first entry that is wrong."""
        for name, pair in (("size", self.size), ("grid", self.grid)):
            if len(pair) != 2 or min(pair) < 1:
                raise ValueError(f"{name}: two whole numbers from 1, got {list(pair)}")
        for name in ("codes", "code_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: a whole number from 1, got {getattr(self, name)}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels: 1 or 3, got {self.channels}")
        factor = 2 ** len(self.widths)
        if not self.widths or min(self.widths) < 2 or self.blocks < 0:
            raise ValueError(f"widths: from 2 each, blocks: from 0; got {list(self.widths)} and {self.blocks}")
        if tuple(side * factor for side in self.grid) != tuple(self.size):
            raise ValueError(
                f"grid: {len(self.widths)} halvings of {list(self.size)} are expected to give it, got {list(self.grid)}"
            )
        if len(self.background) != self.channels or not all(0 <= level <= 1 for level in self.background):
            raise ValueError(f"background: {self.channels} numbers in 0..1, got {list(self.background)}")
        if self.normalise_polarity and self.channels != 1:
            raise ValueError("normalise_polarity: for grey images only")

    @property
    def tokens(self) -> int:
        """Codes of one image."""
        return self.grid[0] * self.grid[1]

    @property
    def row_pixels(self) -> int:
        """Height in pixels of a row of codes."""
        return self.size[0] // self.grid[0]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ImageCodecConfig:
        """Parse the config's object. Raises ValueError naming the entry that is unknown, missing or wrong."""
        known = {field.name for field in fields(cls)}
        if values.get("format", FORMAT) != FORMAT:
            raise ValueError(f"format: this version reads {FORMAT}, got {values['format']!r}")
        if unknown := sorted(set(values) - known - {"format"}):
            raise ValueError(f"unknown entries {unknown}; known are {sorted(known)}")
        if missing := sorted(known - set(values)):
            raise ValueError(f"missing entries {missing}")
        parsed: dict[str, Any] = {}
        for name in known:
            value = values[name]
            if name == "normalise_polarity":
                if not isinstance(value, bool):
                    raise ValueError(f"{name}: true or false, got {value!r}")
                parsed[name] = value
            elif name in ("channels", "codes", "code_width", "blocks"):
                parsed[name] = _whole(name, value)
            elif not isinstance(value, list):
                raise ValueError(f"{name}: a list, got {value!r}")
            elif name == "background":
                parsed[name] = tuple(_number(name, level) for level in value)
            else:
                parsed[name] = tuple(_whole(name, number) for number in value)
        return cls(**parsed)

    def to_json(self) -> dict[str, Any]:
        """The object that `from_json` reads."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {"format": FORMAT, **values}


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}: whole numbers, got {value!r}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}: numbers, got {value!r}")
    return float(value)


class Block(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))), half as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(width, width // 2, 3, padding=1)
        self.mix = nn.Conv2d(width // 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.mix(F.relu(self.spread(F.relu(x))))
        return x + inner


class Encoder(nn.Module):
    """images [b, C, H, W] in 0..1 -> features [b, h, w, d], before the codebook."""

    def __init__(self, config: ImageCodecConfig) -> None:
        super().__init__()
        widths = (config.channels, *config.widths)
        self.halvings = nn.ModuleList(
            nn.Conv2d(wide, narrow, 4, stride=2, padding=1) for wide, narrow in pairwise(widths)
        )
        self.blocks = nn.ModuleList(Block(widths[-1]) for _ in range(config.blocks))
        self.out = nn.Conv2d(widths[-1], config.code_width, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for depth, halving in enumerate(self.halvings):
            x = halving(F.relu(x) if depth else x)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.out(F.relu(x))
        return features.permute(0, 2, 3, 1)


class Decoder(nn.Module):
    """features [b, h, w, d] -> logits [b, C, H, W] of the images' levels: their sigmoid is in 0..1."""

    def __init__(self, config: ImageCodecConfig) -> None:
        super().__init__()
        widths = (*reversed(config.widths), config.channels)
        self.into = nn.Conv2d(config.code_width, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(Block(widths[0]) for _ in range(config.blocks))
        self.doublings = nn.ModuleList(nn.Conv2d(wide, 4 * narrow, 3, padding=1) for wide, narrow in pairwise(widths))

    def forward(self, features: Tensor) -> Tensor:
        x: Tensor = self.into(features.permute(0, 3, 1, 2))
        for block in self.blocks:
            x = block(x)
        for doubling in self.doublings:
            x = F.pixel_shuffle(doubling(F.relu(x)), 2)
        return x
