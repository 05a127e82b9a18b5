"""What the engine asks of a model: the shapes of its state, and one call for a chunk of steps on slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class StateTensor:
    """One tensor of a slot's state: the shape of a row, and the value that a sequence starts from."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    initial: float = 0.0


@dataclass(eq=False, kw_only=True)
class Packing:
    """How packed steps belong to sequences, each on its slot. Nobody changes one: it is not frozen for speed alone.

    offsets [b + 1] int64    sequence i is the rows offsets[i]:offsets[i + 1]; empty sequences are legal
    slots   [b] int64        distinct rows of the state
    fresh   [b] bool         start from the initial state, whatever the slot holds
    reads   [r] int64        rows at whose end the head is evaluated
    """

    offsets: Tensor
    slots: Tensor
    fresh: Tensor
    reads: Tensor


@dataclass(eq=False, kw_only=True)
class Chunk(Packing):
    """Packed steps of features.

    inputs  {modality: [t, dim]}; rows where the modality is absent are never read
    present [m, t] bool, modalities in the order of the model's config
    alone   the head is evaluated twice at each read: over the pooling, then, beside it, over that step by itself
    """

    inputs: Mapping[str, Tensor]
    present: Tensor
    alone: bool = False


@dataclass(eq=False, kw_only=True)
class TokenChunk(Packing):
    """Packed tokens. tokens [t] int64, ids of the model's vocabulary."""

    tokens: Tensor


C = TypeVar("C", bound=Packing, contravariant=True)


class RecurrentModel(Protocol[C]):
    """A model that runs in chunks from and into slots.

    One that has an attribute `same_bits`, and it is true, promises that a sequence's outputs and state have the same
    bits whatever else is in its chunks, in whatever order, and wherever the sequence is cut. Where they depend on the
    processor's instruction set, an attribute `isa` names it.
    """

    def state_tensors(self) -> Mapping[str, StateTensor]:
        """The state's tensors, by name. A pool holds each as [slots, *shape]."""

    def run(self, chunk: C, state: State) -> Tensor:
        """Advance each sequence by its steps, mutating its rows of `state` -> [r, outputs], the head at `reads`.

        [r, 2 * outputs] for a Chunk with `alone`.
        """


def allocate(tensors: Mapping[str, StateTensor], slots: int, device: torch.device | str = "cpu") -> State:
    """A pool of `slots` rows. What the rows hold is arbitrary (`fresh` clears, nothing else does): zeros here."""
    return {name: torch.zeros(slots, *t.shape, dtype=t.dtype, device=device) for name, t in tensors.items()}


def check_features(chunk: Chunk, modalities: Mapping[str, int]) -> int:
    """The rows of a chunk of features that wide. Raises ValueError naming what is of another shape or dtype."""
    m, rows = len(modalities), chunk.present.shape[1]
    if chunk.present.shape[0] != m or chunk.present.dtype != torch.bool:
        raise ValueError(f"present: [{m}, t] bool, got {list(chunk.present.shape)} {chunk.present.dtype}")
    for name, width in modalities.items():
        values = chunk.inputs[name]
        if values.shape != (rows, width) or values.dtype != torch.float32:
            raise ValueError(f"{name}: [{rows}, {width}] float32, got {list(values.shape)} {values.dtype}")
    return rows


def check_state(tensors: Mapping[str, StateTensor], state: State, device: torch.device) -> int:
    """The number of slots of a pool. Raises ValueError naming the tensor that is missing or is not as allocated."""
    slots = None
    for name, expected in tensors.items():
        tensor = state.get(name)
        if tensor is None:
            raise ValueError(f"state: {name} is missing; there are {sorted(state)}")
        shape = tensor.shape
        slots = shape[0] if slots is None else slots
        if shape != (slots, *expected.shape) or tensor.dtype != expected.dtype:
            raise ValueError(
                f"state: {name} is {list(shape)} {tensor.dtype}, expected {[slots, *expected.shape]} {expected.dtype}"
            )
        where = tensor.device
        elsewhere = where != device and where.type != device.type  # the type of one is a new string: slower than both
        if not tensor.is_contiguous() or elsewhere:
            raise ValueError(
                f"state: {name} must be contiguous on {device.type}, got {tensor.stride()} on {tensor.device}"
            )
    return slots or 0


def device_of(model: object) -> torch.device:
    """Where a model wants its state: on the CPU, where it does not say. Chunks and outputs are on the CPU always."""
    return getattr(model, "device", torch.device("cpu"))
