"""The sizes and choices of a Mixture-of-Mamba, as its checkpoint's config.json states them under `model`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from service.models.files import check_size, parse_model

PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "out_proj")


@dataclass(frozen=True)
class MixtureOfMambaConfig:
    """Sizes of a Mixture-of-Mamba.

    d_model          width of the residual stream
    n_layers, d_state (N), d_conv (K), dt_rank (R, default d_model / 16 rounded up)
    d_inner          D, channels; default 2 d_model
    split            which projections exist once a modality; the others are shared by all
    dt_bias          whether dt_proj has a bias, added once before softplus. Hugging Face adds it; the released code of
                     Mixture-of-Mamba drops it where dt_proj is unsplit. A split dt_proj always has one
    tied             whether the head is the embedding, transposed
    eps              of every RMSNorm
    """

    d_model: int
    n_layers: int
    d_state: int = 16
    d_conv: int = 4
    dt_rank: int = 0
    d_inner: int = 0
    split: tuple[str, ...] = PROJECTIONS
    dt_bias: bool = True
    tied: bool = True
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if not isinstance(self.split, list | tuple) or not all(isinstance(name, str) for name in self.split):
            raise ValueError(f"model.split: a list of projections, got {self.split!r}")
        if set(self.split) - set(PROJECTIONS) or len(set(self.split)) < len(self.split):
            raise ValueError(f"model.split: some of {', '.join(PROJECTIONS)}, each once, got {list(self.split)}")
        object.__setattr__(self, "split", tuple(name for name in PROJECTIONS if name in self.split))
        for name in ("dt_bias", "tied"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"model.{name}: true or false, got {getattr(self, name)!r}")
        if "dt_proj" in self.split and not self.dt_bias:
            raise ValueError("model.dt_bias: a split dt_proj has a bias; false is for an unsplit one")
        for name in ("d_model", "n_layers", "d_state"):
            check_size(name, getattr(self, name))
        if self.dt_rank == 0:
            object.__setattr__(self, "dt_rank", math.ceil(self.d_model / 16))
        if self.d_inner == 0:
            object.__setattr__(self, "d_inner", 2 * self.d_model)
        for name, least in (("dt_rank", 1), ("d_inner", 1), ("d_conv", 2)):
            check_size(name, getattr(self, name), least)
        if isinstance(self.eps, bool) or not isinstance(self.eps, float) or not 0 < self.eps < 1:
            raise ValueError(f"model.eps: a number between 0 and 1, got {self.eps!r}")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MixtureOfMambaConfig:
        """Parse the `model` object of a config.json. Raises ValueError for unknown, missing or wrong entries."""
        return parse_model(cls, values)

    def to_json(self) -> dict[str, Any]:
        """The `model` object that `from_json` reads."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)} | {"split": list(self.split)}
