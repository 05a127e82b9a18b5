"""Packs a batch, runs the model on its slots, unpacks. With sampling, the only code that touches tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.clip_program import ClipProgram
from service.engine.generation_program import GenerationProgram
from service.engine.reading_program import ReadingProgram
from service.engine.request import Batch, Work
from service.engine.sampling import Drawn, draw
from service.engine.snapshots import Snapshot, is_sound
from service.models.base import Chunk, Packing, RecurrentModel, State, TokenChunk, allocate, device_of
from service.models.memory import OutOfMemory, allocating

P = TypeVar("P", bound=Packing)


class Runner(ABC, Generic[P]):
    """A model and the pool of its state: a row a slot, and one scratch row more for padding.

    A kind of program says what a step is made of and what is made of the model's outputs.
    """

    def __init__(self, model: RecurrentModel[P], slots: int, fingerprint: str = "") -> None:
        """fingerprint: what the snapshots that are taken here say they were made by. Raises OutOfMemory."""
        self.model, self.fingerprint = model, fingerprint
        with allocating():
            self.state = allocate(model.state_tensors(), slots + 1, device_of(model))
        self._seen = [0] * (slots + 1)  # steps of the sequence on each slot
        own = getattr(model, "isa", None)
        self._instructions = frozenset[str]() if own is None else frozenset({own})
        # The instruction sets that the sequence on each slot came through.
        self._through = [self._instructions] * (slots + 1)

    @property
    def same_bits(self) -> bool:
        """Whether the model that runs here promises them: see `RecurrentModel`."""
        return getattr(self.model, "same_bits", False)

    def same_bits_from(self, state: Snapshot | None) -> bool:
        """The same for what goes on from a state: not where it came through processors that add in another order."""
        return self.same_bits and (state is None or state.instructions <= self._instructions)

    @property
    def state_bytes(self) -> int:
        """Bytes of the pool."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state.values())

    @property
    def device(self) -> torch.device:
        """Where the pool lies, and the weights with it."""
        return next(iter(self.state.values())).device

    def run(self, batch: Batch) -> Sequence[Any]:
        """Restore and fork rows, advance every work of the batch -> for each, what its program takes.

        Before that, a program whose work says so is given its state. Raises OutOfMemory before any row has advanced:
        the batch may run again, or in parts. What is restored and forked then is so once more, from the same rows.
        """
        works = batch.works
        with allocating():
            self._take_over(batch)
            chunk, reads = self._packed(works)
            copies = {work: allocate_row(self.state) for work in works if work.capture}
        values = self.model.run(chunk, self.state).numpy()
        parts, begin = [], 0
        for read in reads:
            parts.append(values[begin : begin + len(read)])
            begin += len(read)
        outputs = self.outputs(works, parts)
        for work in works:
            seen, through = (0, self._instructions) if work.fresh else (self._seen[work.slot], self._through[work.slot])
            self._seen[work.slot], self._through[work.slot] = seen + work.steps, through | self._instructions
            if work.capture:
                work.request.program.captured(work, self._capture(work.slot, copies[work]))
        return outputs

    def take_out(self, slots: Sequence[int]) -> object | None:
        """As the scheduler's `Rows`; the copy lies in the host's memory."""
        try:
            with allocating():
                copies = [allocate_row(self.state) for _ in slots]
        except OutOfMemory:
            return None
        for slot, copy in zip(slots, copies, strict=True):
            for name, row in copy.items():
                row.copy_(self.state[name][slot])
        return [(copy, self._seen[slot], self._through[slot]) for slot, copy in zip(slots, copies, strict=True)]

    def put_back(self, slots: Sequence[int], kept: object) -> None:
        """As the scheduler's `Rows`."""
        assert isinstance(kept, list)
        for slot, (copy, seen, through) in zip(slots, kept, strict=True):
            for name, row in copy.items():
                self.state[name][slot].copy_(row)
            self._seen[slot], self._through[slot] = seen, through

    def _packed(self, works: Sequence[Work]) -> tuple[P, Sequence[range]]:
        """The works as one chunk, and the steps of each that the head is read at."""
        offsets, places = [0], list[int]()
        reads = [self.reads(work) for work in works]
        for work, read in zip(works, reads, strict=True):
            begin = offsets[-1]
            offsets.append(begin + work.steps)
            places += range(begin + read.start, begin + read.stop)
        # Parts of one array: of what is made for a step, few things are dearer than a tensor from a list.
        numbers = np.array([*offsets, *(work.slot for work in works), *places], np.int64)
        count = len(works)
        chunk = self.chunk(
            works,
            offsets=torch.from_numpy(numbers[: count + 1]),
            slots=torch.from_numpy(numbers[count + 1 : 2 * count + 1]),
            fresh=torch.from_numpy(np.array([work.fresh for work in works])),
            reads=torch.from_numpy(numbers[2 * count + 1 :]),
        )
        return chunk, reads

    def _take_over(self, batch: Batch) -> None:
        """Fill the rows that go on from a snapshot, then those that go on from another row."""
        if batch.restores:
            slots = torch.tensor([slot for _, slot in batch.restores])
            for name, tensor in self.state.items():
                tensor[slots] = torch.stack([snapshot.rows[name].to(tensor.device) for snapshot, _ in batch.restores])
            for snapshot, slot in batch.restores:
                self._seen[slot], self._through[slot] = snapshot.steps, snapshot.instructions
        if batch.forks:
            sources, copies = (torch.tensor(slots) for slots in zip(*batch.forks, strict=True))
            for tensor in self.state.values():
                tensor[copies] = tensor[sources]
            for source, copy in batch.forks:
                self._seen[copy], self._through[copy] = self._seen[source], self._through[source]

    def _capture(self, slot: int, rows: State) -> Snapshot | None:
        """A slot's rows, copied into `rows`, or None where they are not finite."""
        for name, row in rows.items():
            row.copy_(self.state[name][slot])
        tensors = self.model.state_tensors()
        if not all(is_sound(row, tensors[name]) for name, row in rows.items()):
            return None
        return Snapshot(self.fingerprint, rows, self._seen[slot], instructions=self._through[slot])

    @abstractmethod
    def reads(self, work: Work) -> range:
        """Which of a work's steps the head is read at, counted from its first."""

    @abstractmethod
    def chunk(self, works: Sequence[Work], **packing: Tensor) -> P:
        """The works' steps, one after the other. packing: what a `Packing` is made of."""

    @abstractmethod
    def outputs(self, works: Sequence[Work], values: Sequence[NDArray[np.float32]]) -> Sequence[Any]:
        """What each work's program takes, from the head's outputs [reads, outputs] of each."""


class ClipRunner(Runner[Chunk]):
    """Steps are features; `modalities` gives the width of each, in the order of the model's config."""

    def __init__(
        self, model: RecurrentModel[Chunk], modalities: Mapping[str, int], slots: int, fingerprint: str = ""
    ) -> None:
        super().__init__(model, slots, fingerprint)
        self.modalities = modalities

    def reads(self, work: Work) -> range:
        """The last step of a clip, or every step, as the clip's program asks."""
        return _clip(work).reads(work)

    def chunk(self, works: Sequence[Work], **packing: Tensor) -> Chunk:
        """The clips' values and masks. A clip that lacks a modality has rows that are never read."""
        present = [_clip(work).clip.present[:, work.start : work.stop] for work in works]
        return Chunk(
            inputs={name: self._packed_values(works, name, dim) for name, dim in self.modalities.items()},
            present=_joined(present, axis=1),
            alone=any(_clip(work).alone for work in works),
            **packing,
        )

    def outputs(self, works: Sequence[Work], values: Sequence[NDArray[np.float32]]) -> Sequence[NDArray[np.float32]]:
        """The outputs; of steps by themselves, to those programs only that asked for them."""
        if not any(_clip(work).alone for work in works):
            return values
        return [
            rows if _clip(work).alone else rows[:, : rows.shape[1] // 2]
            for work, rows in zip(works, values, strict=True)
        ]

    @staticmethod
    def _packed_values(works: Sequence[Work], modality: str, dim: int) -> Tensor:
        parts = []
        for work in works:
            values = _clip(work).clip.values.get(modality)
            parts.append(np.zeros((work.steps, dim), np.float32) if values is None else values[work.start : work.stop])
        return _joined(parts)


class TokenRunner(Runner[TokenChunk]):
    """Steps are tokens; what comes out is drawn from the logits here, so that no logits leave the runner."""

    def reads(self, work: Work) -> range:
        """The last token of a decode piece; none of a prompt's chunk."""
        return range(work.steps - 1, work.steps) if work.decode else range(0)

    def chunk(self, works: Sequence[Work], **packing: Tensor) -> TokenChunk:
        """The tokens that the works read."""
        return TokenChunk(
            tokens=torch.from_numpy(np.array([i for work in works for i in _reading(work).tokens(work)], np.int64)),
            **packing,
        )

    def outputs(self, works: Sequence[Work], values: Sequence[NDArray[np.float32]]) -> Sequence[Drawn | None]:
        """What was drawn from each work's logits [reads, vocabulary], with its twin's beside them."""
        rows = {(work.request, work.row): logits[-1] for work, logits in zip(works, values, strict=True) if len(logits)}
        drawn = []
        for work in works:
            spec, twin = _reading(work).draw(work), None
            if spec is not None and spec.guided_by is not None:
                twin = rows[work.request, spec.guided_by]
            drawn.append(None if spec is None else draw(spec, rows[work.request, work.row], twin))
        return drawn


def allocate_row(state: State) -> State:
    """Room for a copy of one slot, in the host's memory: what is kept leaves the device."""
    return {name: torch.empty(tensor.shape[1:], dtype=tensor.dtype) for name, tensor in state.items()}


def _joined(parts: Sequence[NDArray[Any]], axis: int = 0) -> Tensor:
    """Arrays one after the other. One alone is not copied; a read-only one is: PyTorch makes no tensor of that."""
    alone = len(parts) == 1 and parts[0].flags.carray  # aligned and contiguous as well
    return torch.from_numpy(parts[0] if alone else np.concatenate(parts, axis=axis))


def _clip(work: Work) -> ClipProgram:
    program = work.request.program
    assert isinstance(program, ClipProgram)
    return program


def _reading(work: Work) -> GenerationProgram | ReadingProgram:
    program = work.request.program
    assert isinstance(program, GenerationProgram | ReadingProgram)
    return program
