"""The sizes and choices of a Coupled Mamba, as its checkpoint's config.json states them under `model`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from service.models.files import check_size, parse_model

COUPLINGS = ("mean", "learned", "sum", "none", "layers")
INPUTS = ("linear", "mlp")
POOLS = ("max", "mean")
WEIGHTS = ("softmax", "ratio")


@dataclass(frozen=True)
class CoupledMambaConfig:
    """Sizes of a Coupled Mamba.

    modalities       {name: width of its features}, in the order of every tensor's modality axis; 1 to 8 of them
    d_model          width of the residual stream
    n_layers, d_state (N), d_conv (K), expand, dt_rank (R, default d_model / 16 rounded up)
    coupling         mean | learned | sum | none, or layers (the authors' released code)
    input            linear, or mlp (Linear, LayerNorm, ReLU, Linear, LayerNorm of width d_input)
    pool             which poolings over time the head reads, in order: max, mean
    modality_weights how the head weighs the modalities: softmax of its weights, or the weights over their sum
    d_head           hidden width of the head
    outputs          {name: width} of the head's output, in order
    """

    modalities: Mapping[str, int]
    d_model: int
    n_layers: int
    d_state: int
    d_conv: int = 4
    expand: int = 2
    dt_rank: int = 0
    coupling: str = "mean"
    input: str = "linear"
    d_input: int = 0
    pool: tuple[str, ...] = ("max", "mean")
    modality_weights: str = "softmax"
    d_head: int = 64
    outputs: Mapping[str, int] = field(default_factory=lambda: {"sentiment": 1})

    def __post_init__(self) -> None:
        for name, kind in (("modalities", Mapping), ("outputs", Mapping), ("pool", list | tuple)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"model.{name}: {getattr(self, name)!r} is of the wrong type")
        object.__setattr__(self, "modalities", MappingProxyType(dict(self.modalities)))
        object.__setattr__(self, "outputs", MappingProxyType(dict(self.outputs)))
        object.__setattr__(self, "pool", tuple(self.pool))
        if self.dt_rank == 0:
            object.__setattr__(self, "dt_rank", math.ceil(self.d_model / 16))
        sizes = ("d_model", "n_layers", "d_state", "expand", "dt_rank", "d_head")
        for name in sizes:
            check_size(name, getattr(self, name))
        check_size("d_conv", self.d_conv, 2, 64)
        if not 1 <= len(self.modalities) <= 8:
            raise ValueError(f"model.modalities: 1 to 8 modalities, got {list(self.modalities)}")
        for group, widths in (("modalities", self.modalities), ("outputs", self.outputs)):
            for name, width in widths.items():
                check_size(f"{group}.{name}", width)
        if self.outputs.get("sentiment") != 1:
            raise ValueError(f"model.outputs: needs sentiment of width 1, got {dict(self.outputs)}")
        _check_choice("coupling", self.coupling, COUPLINGS)
        _check_choice("input", self.input, INPUTS)
        _check_choice("modality_weights", self.modality_weights, WEIGHTS)
        if self.input == "mlp":
            check_size("d_input", self.d_input)
        if not self.pool or set(self.pool) - set(POOLS) or len(set(self.pool)) != len(self.pool):
            raise ValueError(f"model.pool: one or both of {POOLS}, got {list(self.pool)}")

    @property
    def d_inner(self) -> int:
        """D: channels of a chain."""
        return self.expand * self.d_model

    @property
    def dense(self) -> bool:
        """Whether every modality must be present at every step."""
        return self.coupling == "layers"

    @property
    def state_chains(self) -> int:
        """Chains that the state holds: one, sigma, where all weights of the coupling are equal."""
        return 1 if self.coupling in ("mean", "sum") else len(self.modalities)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CoupledMambaConfig:
        """Parse the `model` object of a config.json. Raises ValueError for unknown, missing or wrong entries."""
        return parse_model(cls, values)

    def to_json(self) -> dict[str, Any]:
        """The `model` object that `from_json` reads."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return values | {
            "modalities": dict(self.modalities),
            "outputs": dict(self.outputs),
            "pool": list(self.pool),
        }


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"model.{name}: one of {', '.join(choices)}, got {value!r}")
