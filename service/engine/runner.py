"""Packs a batch, runs the model on its slots, unpacks. The only code of the engine that touches tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.request import Batch, Work
from service.features.types import Clip
from service.models.base import Chunk, RecurrentModel, allocate


class Runner:
    """A model and the pool of its state: a row a slot, and one scratch row more for padding.

    Payloads are clips; `modalities` gives the width of each, in the order of the model's config.
    """

    def __init__(self, model: RecurrentModel[Chunk], modalities: Mapping[str, int], slots: int) -> None:
        self.model, self.modalities = model, modalities
        self.state = allocate(model.state_tensors(), slots + 1)

    @property
    def state_bytes(self) -> int:
        """Bytes of the pool."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state.values())

    def run(self, batch: Batch) -> list[NDArray[np.float32]]:
        """Advance every work of the batch -> for each, the head's outputs [reads, outputs]; no reads, no rows."""
        lengths = [work.stop - work.start for work in batch.works]
        ends = np.cumsum(lengths)
        reads = [_reads(work, int(end)) for work, end in zip(batch.works, ends, strict=True)]
        chunk = Chunk(
            inputs={name: self._packed_values(batch, name, dim) for name, dim in self.modalities.items()},
            present=torch.from_numpy(
                np.concatenate([_clip(work).present[:, work.start : work.stop] for work in batch.works], axis=1)
            ),
            offsets=torch.from_numpy(np.concatenate([[0], ends])),
            slots=torch.tensor([work.slot for work in batch.works]),
            fresh=torch.tensor([work.fresh for work in batch.works]),
            reads=torch.from_numpy(np.concatenate(reads)),
        )
        outputs: NDArray[np.float32] = self.model.run(chunk, self.state).numpy()
        return np.split(outputs, np.cumsum([len(rows) for rows in reads])[:-1])

    @staticmethod
    def _packed_values(batch: Batch, modality: str, dim: int) -> Tensor:
        """One modality's rows of a batch [t, dim]; a clip that lacks the modality has rows that are never read."""
        parts = []
        for work in batch.works:
            values = _clip(work).values.get(modality)
            rows = np.zeros((work.stop - work.start, dim), np.float32)
            parts.append(rows if values is None else values[work.start : work.stop])
        return torch.from_numpy(np.concatenate(parts))


def _clip(work: Work) -> Clip:
    payload = work.request.payload
    assert isinstance(payload, Clip)
    return payload


def _reads(work: Work, end: int) -> NDArray[np.int64]:
    """Packed rows at which the head is read, where the work's rows end before row `end`."""
    if work.request.read_all:
        return np.arange(end - (work.stop - work.start), end)
    return np.arange(end - 1, end) if work.stop == work.request.steps else np.arange(0)
