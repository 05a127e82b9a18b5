"""Forms of a Coupled Mamba that its programs are tested in, one chunk of them, and chunks that are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from service.models.base import Chunk
from tests.bits import bits
from tests.checkpoints import WIDTHS
from tests.models.clips import Clips, make_clips, poisoned_state

COUPLINGS = ("mean", "learned", "sum", "none", "layers")
FORMS: list[dict[str, Any]] = [
    {},
    {"input": "mlp", "d_input": 9, "pool": ("mean",), "modality_weights": "ratio", "expand": 1},
    {"pool": ("mean", "max"), "d_state": 17, "d_model": 17, "d_conv": 3, "n_layers": 3},
]

WRONG: list[tuple[str, Any]] = [  # in a chunk of one clip of seven steps, all present; inputs by modality
    ("text", {"text": torch.zeros(6, WIDTHS["text"])}),
    ("audio", {"audio": torch.zeros(7, WIDTHS["audio"], dtype=torch.float64)}),
    ("present", torch.ones(2, 7, dtype=torch.bool)),
    ("present", torch.ones(3, 7)),
    ("offsets", torch.tensor([0, 8, 7])),
    ("offsets", torch.tensor([0, 5, 6])),
    ("slots", torch.tensor([1, 1])),
    ("slots", torch.tensor([1, 3])),
    ("fresh", torch.tensor([True])),
    ("reads", torch.tensor([7])),
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


def assert_refused(executable: Any, name: str, wrong: Any) -> None:
    """A chunk with a wrong entry is named and writes nothing, and the right one runs after it."""
    good = chunk_of(make_clips([7], torch.ones(3, 7, dtype=torch.bool), seed=5))
    state = poisoned_state(executable, 3, torch.float32)
    before = {entry: bits(tensor) for entry, tensor in state.items()}
    changes = {"inputs": {**good.inputs, **wrong}} if isinstance(wrong, dict) else {name: wrong}
    with pytest.raises(ValueError, match=name):
        executable.run(replace(good, **changes), state)
    assert {entry: bits(tensor) for entry, tensor in state.items()} == before
    executable.run(good, state)
