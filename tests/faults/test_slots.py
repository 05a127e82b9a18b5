"""What lies in a slot, beside it, or arrives for it too late, is nobody else's business: bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.engine.request import Request
from service.models.base import Chunk, TokenChunk, allocate
from service.models.executables import make_executable
from tests.checkpoints import WIDTHS
from tests.engine.bench import BOS, CLIP, CLIPS, TOKEN, TOKENS, Bench, answers_of, bitwise_backends, outputs_of
from tests.engine.clips import Gate, part, random_clip
from tests.faults.service import Wrapped
from tests.generators import params

Start = Callable[..., Bench]
pytestmark = pytest.mark.parametrize("backend", bitwise_backends())
DRAWN = params(max_tokens=12, temperature=1.0, logprobs=2, seed=5)
WINDOW = CLIPS.config.d_conv


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [BOS, *np.random.default_rng(seed).integers(1, 255, length - 1).tolist()]


def test_a_slot_on_reuse_is_as_new(start: Start, backend: str) -> None:
    """One slot for all: what the one before left there, finite or not, is not read."""
    rng = np.random.default_rng(0)
    clips = [random_clip(rng, steps) for steps in (9, 1, 2, 30)]
    alone = [outputs_of(start(backend, slots=1).clip(clip).result(60)) for clip in clips]
    bench = start(backend, slots=1)
    assert [outputs_of(future.result(60)) for future in bench.clips(clips)] == alone
    prompts = [(prompt_of(length), DRAWN) for length in (1, 2, 9)]
    expected = [answers_of(start(backend, slots=1).generation(*call).result(60)) for call in prompts]
    assert [answers_of(future.result(60)) for future in bench.generations(prompts)] == expected


@pytest.mark.parametrize("rest", range(1, 5))
@pytest.mark.parametrize("chunk_steps", [1, 2, 3])
def test_a_chunk_shorter_than_the_window_after_a_shared_prefix(
    start: Start, backend: str, rest: int, chunk_steps: int
) -> None:
    """The convolution looks back over the border, into what came out of the cache."""
    assert WINDOW > 3
    shared = prompt_of(16)
    plain, bench = start(backend), start(backend, chunk_steps=chunk_steps, prefix_bytes=2**20)
    for seed in (
        1,
        2,
        3,
        4,
    ):  # the second parts from the first there, the third does and leaves the state, for this one
        call = (shared + prompt_of(rest + 1, seed)[1:], DRAWN)
        answer = bench.generation(*call, cached=True).result(60)
        assert answers_of(answer) == answers_of(plain.generation(*call).result(60))
    assert answer.cached_tokens >= 15


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
def test_the_first_chunk_from_a_restored_state_alone_in_its_batch(start: Start, backend: str, steps: int) -> None:
    clip = random_clip(np.random.default_rng(steps), 7 + steps)
    whole = start(backend, chunk_steps=50).clip(clip).result(60)
    state = start(backend).clip(part(clip, 0, 7), capture=True).result(60).snapshot
    bench = start(backend)
    rest = bench.clip(part(clip, 7, 7 + steps), restore=state).result(60)
    assert [len(batch.works) for batch in bench.batches] == [1] * len(bench.batches)
    assert rest.outputs.tobytes() == whole.outputs[7:].tobytes()


@pytest.mark.parametrize("lane", [CLIP, TOKEN])
def test_rows_of_padding_beside_live_slots(backend: str, lane: str) -> None:
    """Empty sequences, on the scratch row, between others and at the end; rows of nobody in this batch stay."""
    name, _, dtype = backend.partition(" ")
    of = {"dtype": torch.bfloat16 if dtype else torch.float32}
    model: Any = make_executable(CLIPS if lane == CLIP else TOKENS, name, **of)
    rng = np.random.default_rng(1)
    state = allocate(model.state_tensors(), 6)
    for tensor in state.values():
        tensor.copy_(torch.from_numpy(rng.random(tuple(tensor.shape))).to(tensor.dtype))
    kept = {key: tensor.clone() for key, tensor in state.items()}
    live, padded = [2, 0], [2, 5, 0, 4]

    def chunk(slots: list[int], offsets: list[int]) -> Any:
        packing: dict[str, Tensor] = {
            "offsets": torch.tensor(offsets),
            "slots": torch.tensor(slots),
            "fresh": torch.tensor([slot == 0 for slot in slots]),
            "reads": torch.tensor([2, 6]),
        }
        if lane == TOKEN:
            return TokenChunk(tokens=torch.arange(1, 8), **packing)
        drawn = np.random.default_rng(2)
        values = {n: torch.from_numpy(drawn.standard_normal((7, w)).astype(np.float32)) for n, w in WIDTHS.items()}
        return Chunk(inputs=values, present=torch.ones(3, 7, dtype=torch.bool), **packing)

    expected = model.run(chunk(live, [0, 3, 7]), state)
    after = {key: tensor.clone() for key, tensor in state.items()}
    for key, tensor in state.items():
        tensor.copy_(kept[key])
    outputs = model.run(chunk(padded, [0, 3, 3, 7, 7]), state)
    assert outputs.numpy().tobytes() == expected.numpy().tobytes()
    for key, tensor in state.items():
        assert tensor[live].numpy().tobytes() == after[key][live].numpy().tobytes()
        for slot in (1, 3, 4, 5):
            assert tensor[slot].numpy().tobytes() == kept[key][slot].numpy().tobytes()


@pytest.mark.parametrize("lane", [CLIP, TOKEN])
def test_the_result_of_a_cancelled_request_is_nobodys(start: Start, backend: str, lane: str) -> None:
    """It is cancelled while its last batch runs: the result arrives, the slot is free once, its next owner is new."""
    gate, told = Gate(), []
    bench = start(backend, wrap={lane: lambda model: Wrapped(model, before=gate)}, slots=1, chunk_steps=50)
    fresh = start(backend, slots=1, chunk_steps=50)
    rng = np.random.default_rng(3)
    clip, next_clip = random_clip(rng, 9), random_clip(rng, 5)
    short = params(max_tokens=1, temperature=1.0)
    if lane == CLIP:
        gone: Any = bench.clip(clip, capture=True)
    else:
        gone = bench.generation(prompt_of(1), short, listener=told.append)
    gate.wait_reached()
    assert gone.cancel()
    gate.open()
    if lane == CLIP:
        assert outputs_of(bench.clip(next_clip).result(60)) == outputs_of(fresh.clip(next_clip).result(60))
    else:
        call = (prompt_of(4), DRAWN)
        assert answers_of(bench.generation(*call).result(60)) == answers_of(fresh.generation(*call).result(60))
    assert gone.cancelled()
    assert bench.engine.alive
    assert bench.value("cancellations_total", phase="inference") == 1


def test_a_cancelled_request_in_the_queue_never_takes_a_slot(start: Start, backend: str) -> None:
    gate = Gate()
    bench = start(backend, wrap={CLIP: lambda model: Wrapped(model, before=gate)}, slots=1)
    rng = np.random.default_rng(4)
    first = bench.clip(random_clip(rng, 3))
    gate.wait_reached()
    waits = bench.clip(random_clip(rng, 3))
    assert waits.cancel()
    gate.open()
    first.result(60)
    bench.clip(random_clip(rng, 1)).result(60)
    ran: list[Request[Any]] = [request for batch in bench.batches for request in batch.requests]
    assert not any(request.future is waits for request in ran)
