"""Steps of decoding in buckets of sizes, each captured once as a CUDA graph, padded with rows that are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from service.kernels.triton.select import Sequences
from service.models.base import State, TokenChunk

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MOST_STEPS = BUCKETS[-1]

Steps = Callable[[Tensor, Sequences, State, Tensor], None]


@dataclass(frozen=True)
class _Bucket:
    """The memory of a bucket and, on a GPU, the graph over it.

    given [3, bucket] int64: tokens, slots and fresh, on the CPU; sent: the same, on the device
    answer: logits, on the CPU
    """

    given: Tensor
    sent: Tensor
    fresh: Tensor
    offsets: Tensor
    logits: Tensor
    answer: Tensor
    graph: torch.cuda.CUDAGraph | None

    @property
    def sequences(self) -> Sequences:
        return Sequences(self.offsets, self.sent[1], self.fresh, self.offsets[:-1], steps=True)


class StepBuckets:
    """Runs of `steps(tokens [t], sequences, state, logits [t, vocabulary])`, which must not wait for the device.

    A batch takes the least bucket that holds it. The rest of its rows have the token -1, of which nothing is computed,
    and name the pool's last row, the scratch row, as their slot. A graph belongs to one pool.
    """

    def __init__(self, steps: Steps, vocabulary: int, device: torch.device, capture: bool) -> None:
        """capture: replay graphs. Otherwise every kernel is launched each time."""
        self._steps, self._vocabulary, self._device, self._capture = steps, vocabulary, device, capture
        self._buckets: dict[tuple[int, ...], _Bucket] = {}

    def run(self, chunk: TokenChunk, state: State) -> Tensor:
        """Advance each sequence by its one token -> logits at `reads` [r, vocabulary], on the CPU."""
        rows = chunk.tokens.shape[0]
        bucket = self._bucket(rows, state)
        for entries, given, padding in zip(
            bucket.given, (chunk.tokens, chunk.slots, chunk.fresh), (-1, state["ssm"].shape[0] - 1, 1), strict=True
        ):
            entries[:rows], entries[rows:] = given, padding
        bucket.sent.copy_(bucket.given, non_blocking=True)
        self._replay(bucket, state)
        bucket.answer[:rows].copy_(bucket.logits[:rows], non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # the one wait of a step: the sampler is on the CPU
        return bucket.answer[chunk.reads]

    def again(self, rows: int, state: State) -> None:
        """The last step of so many rows once more, without its copies and without waiting: what a benchmark times."""
        self._replay(self._bucket(rows, state), state)

    def _bucket(self, rows: int, state: State) -> _Bucket:
        size = next(size for size in BUCKETS if size >= rows)
        key = (size, *(tensor.data_ptr() for tensor in state.values()))
        if key not in self._buckets:
            self._buckets[key] = self._make(size, state)
        return self._buckets[key]

    def _replay(self, bucket: _Bucket, state: State) -> None:
        if bucket.graph is None:
            self._run(bucket, state)
        else:
            bucket.graph.replay()

    def _run(self, bucket: _Bucket, state: State) -> None:
        bucket.fresh.copy_(bucket.sent[2] != 0)
        self._steps(bucket.sent[0], bucket.sequences, state, bucket.logits)

    def _make(self, size: int, state: State) -> _Bucket:
        """Compile and load the kernels by a step of no row, then capture one."""
        pinned = self._device.type == "cuda"
        bucket = _Bucket(
            given=torch.empty(3, size, dtype=torch.int64, pin_memory=pinned),
            sent=torch.full((3, size), -1, dtype=torch.int64, device=self._device),
            fresh=torch.ones(size, dtype=torch.bool, device=self._device),
            offsets=torch.arange(size + 1, device=self._device),
            logits=torch.empty(size, self._vocabulary, device=self._device),
            answer=torch.empty(size, self._vocabulary, pin_memory=pinned),
            graph=torch.cuda.CUDAGraph() if self._capture else None,
        )
        if bucket.graph is not None:
            self._run(bucket, state)
            torch.cuda.synchronize()
            with torch.cuda.graph(bucket.graph):
                self._run(bucket, state)
        return bucket
