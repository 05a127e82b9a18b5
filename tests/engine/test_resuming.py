"""Going on from a state costs the same, and is of the same size, however long the sequence was. Counted, not timed."""

from __future__ import annotations

import numpy as np
import pytest

from service.engine.reading_program import ReadingProgram
from service.engine.request import Request
from service.engine.snapshots import Snapshot, SnapshotFormat
from service.features.types import Clip
from tests.checkpoints import WIDTHS
from tests.engine.bench import BOS, CLIPS, TOKEN, TOKENS, Bench, bitwise_backends
from tests.generators import params

SHORT, LONG = 100, 100_000
pytestmark = pytest.mark.parametrize("backend", bitwise_backends()[:1])


def assert_of_one_size(states: SnapshotFormat, *snapshots: Snapshot | None) -> None:
    short, long = (snapshot for snapshot in snapshots if snapshot is not None)
    assert (short.steps, long.steps) == (SHORT, LONG)
    assert short.bytes == long.bytes
    assert abs(len(states.dump(short)) - len(states.dump(long))) <= 8  # the number of steps has more digits


def test_a_conversation(backend: str) -> None:
    bench = Bench(backend, chunk_steps=1000, step_budget=2000)
    ids = np.random.default_rng(0).integers(1, 255, LONG).tolist()
    states, costs = [], []
    for length in (SHORT, LONG):
        (read,) = bench.engine.submit(TOKEN, [Request("reading", ReadingProgram([BOS, *ids[: length - 1]]))])
        states.append(read.result(60).snapshot)
        bench.batches.clear()
        answer = bench.generation([5, 6, 7], params(max_tokens=4), restore=states[-1], capture=True).result(60)
        assert answer.snapshot is not None
        assert answer.snapshot.steps == length + 3 + 4
        copied = sum(s.bytes for batch in bench.batches for s, _ in batch.restores)
        costs.append(([batch.steps for batch in bench.batches], copied))
    assert costs[0] == costs[1]
    assert costs[0][1] == states[0].bytes
    assert_of_one_size(SnapshotFormat("tokens", "", TOKENS.state_tensors()), *states)
    bench.close()


def test_a_stream(backend: str) -> None:
    bench = Bench(backend, chunk_steps=1000, step_budget=2000)
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal((LONG, width)).astype(np.float32) for name, width in WIDTHS.items()}
    states, costs = [], []
    for length in (SHORT, LONG):
        rows = {name: array[:length] for name, array in values.items()}
        clip = Clip(rows, np.ones((3, length), bool), np.arange(length) / 10)
        states.append(bench.clip(clip, read_all=False, capture=True).result(60).snapshot)
        bench.batches.clear()
        frame = Clip({name: array[:1] for name, array in values.items()}, np.ones((3, 1), bool), np.zeros(1))
        bench.clip(frame, restore=states[-1], capture=True).result(60)
        copied = sum(s.bytes for batch in bench.batches for s, _ in batch.restores)
        costs.append(([batch.steps for batch in bench.batches], copied))
    assert states[0] is not None
    assert costs == [([1], states[0].bytes)] * 2
    assert_of_one_size(SnapshotFormat("clips", "", CLIPS.state_tensors()), *states)
    bench.close()
