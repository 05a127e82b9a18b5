"""Clips and models for the engine: random input of any modalities, answers alone, models that can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.features.types import Clip
from service.models.base import Chunk, RecurrentModel, State, StateTensor, allocate
from service.models.coupled_mamba import CoupledMamba
from tests.checkpoints import WIDTHS

MARK = 666.0  # a text value that the models below react to


def random_clip(rng: np.random.Generator, steps: int, *, marked: bool = False) -> Clip:
    """A clip of some modalities, each here and there; every step has at least one. Absent ones may lack values."""
    present = rng.random((len(WIDTHS), steps)) < rng.uniform(0.2, 1.0)
    if marked or rng.random() < 0.4:
        present[rng.integers(1, len(WIDTHS))] = False
    present[0, ~present.any(axis=0)] = True
    values = {}
    for row, (name, width) in enumerate(WIDTHS.items()):
        if present[row].any():
            values[name] = rng.standard_normal((steps, width)).astype(np.float32)
    if marked:
        present[0, -1] = True
        values.setdefault("text", np.zeros((steps, WIDTHS["text"]), np.float32))[-1, 0] = MARK
    return Clip(values, present, np.arange(steps) / 10)


def part(clip: Clip, start: int, stop: int) -> Clip:
    """Some of a clip's steps."""
    values = {name: rows[start:stop] for name, rows in clip.values.items()}
    return Clip(values, clip.present[:, start:stop], clip.times[start:stop])


def answer_alone(model: RecurrentModel[Chunk], clip: Clip) -> NDArray[np.float32]:
    """The head at every step, of the clip alone and in one pass [steps, outputs]."""
    inputs = {
        name: torch.from_numpy(clip.values.get(name, np.zeros((clip.steps, width), np.float32)))
        for name, width in WIDTHS.items()
    }
    every = torch.arange(clip.steps)
    one, fresh = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool)
    packing = {"offsets": torch.tensor([0, clip.steps]), "slots": one, "fresh": fresh, "reads": every}
    chunk = Chunk(inputs=inputs, present=torch.from_numpy(clip.present), **packing)
    outputs: NDArray[np.float32] = model.run(chunk, allocate(model.state_tensors(), 1)).numpy()
    return outputs


class Hooked:
    """A model that calls back before and after it runs."""

    def __init__(
        self,
        model: CoupledMamba,
        *,
        before: Callable[[Chunk], object] = lambda chunk: None,
        after: Callable[[Chunk, Tensor], Tensor] = lambda chunk, outputs: outputs,
    ) -> None:
        self.model, self.before, self.after = model, before, after

    def state_tensors(self) -> Mapping[str, StateTensor]:
        return self.model.state_tensors()

    def run(self, chunk: Chunk, state: State) -> Tensor:
        self.before(chunk)
        return self.after(chunk, self.model.run(chunk, state))


class Gate:
    """Holds whoever passes until it is opened; `reached` is set when somebody stands before it."""

    def __init__(self) -> None:
        self.reached, self._open = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> None:
        self.reached.set()
        assert self._open.wait(60), "nobody opened the gate"

    def open(self) -> None:
        self._open.set()

    def wait_reached(self) -> None:
        assert self.reached.wait(60), "nobody came to the gate"


def is_marked(chunk: Chunk) -> bool:
    """Whether a marked clip's last step is in the chunk."""
    return bool((chunk.inputs["text"][:, 0] == MARK).any())
