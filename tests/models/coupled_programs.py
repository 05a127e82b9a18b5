"""Forms of a Coupled Mamba that its programs are tested in, and one chunk of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from service.models.base import Chunk
from tests.models.clips import Clips, poisoned_state

COUPLINGS = ("mean", "learned", "sum", "none", "layers")
FORMS: list[dict[str, Any]] = [
    {},
    {"input": "mlp", "d_input": 9, "pool": ("mean",), "modality_weights": "ratio", "expand": 1},
    {"pool": ("mean", "max"), "d_state": 17, "d_model": 17, "d_conv": 3, "n_layers": 3},
]


def advance(model: Any, batch: Clips) -> dict[str, Tensor]:
    """The state after a fresh clip on slot 1 of 3, an empty fresh sequence on slot 2, and none on 0."""
    state = poisoned_state(model, 3, torch.float32)
    model.run(chunk_of(batch), state)
    return state


def chunk_of(batch: Clips, **changes: Any) -> Chunk:
    steps = sum(batch.lengths)
    entries = {
        "inputs": {name: rows.float() for name, rows in batch.inputs.items()},
        "present": batch.present,
        "offsets": torch.tensor([0, steps, steps]),
        "slots": torch.tensor([1, 2]),
        "fresh": torch.tensor([True, True]),
        "reads": torch.tensor([steps - 1]),
    }
    return Chunk(**(entries | changes))


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
