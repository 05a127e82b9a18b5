"""Generations that fail, are cancelled or come late fail alone, and leave nothing behind."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from service.errors import DeadlineExceeded, Internal
from service.models.base import TokenChunk
from tests.engine.clips import Gate
from tests.engine.generations import (
    BOS,
    MARK,
    MODEL,
    TRIO,
    HookedTokens,
    Listening,
    Start,
    assert_same,
    endless,
    prompt_of,
)
from tests.engine.slow import slow_generation
from tests.generators import params


def test_a_raising_model_answers_its_batch_and_the_next_works(start: Start) -> None:
    def fail(chunk: TokenChunk) -> None:
        if (chunk.tokens == MARK).any():
            raise RuntimeError("a secret of ours")

    bench = start(HookedTokens(MODEL, before=fail))
    with pytest.raises(Internal) as error:
        bench.submit([BOS, MARK], params(n=2, guidance_scale=2.0)).result(60)
    assert "secret" not in str(error.value)
    assert_same(bench.submit([BOS], params()).result(60).choices[0], slow_generation(MODEL, [BOS], params()))
    bench.assert_idle()


@pytest.mark.parametrize("twin", [False, True])
def test_logits_that_are_not_finite_fail_their_request_only(start: Start, twin: bool) -> None:
    image = TRIO.media["image"].open

    def spoil(chunk: TokenChunk, logits: Tensor) -> Tensor:
        logits = logits.clone()
        ends = chunk.offsets[1:] - 1
        lengths = chunk.offsets.diff()
        marked = (lengths == 2) & (chunk.tokens[ends] == image) if twin else chunk.tokens[ends] == MARK
        for row, end in enumerate(chunk.reads.tolist()):
            if marked[ends.tolist().index(end)]:
                logits[row, 0] = torch.nan
        return logits

    bench = start(HookedTokens(MODEL, after=spoil))
    good = bench.submit(prompt_of(7), params(mode="text-only", max_tokens=25))
    bad = bench.submit([BOS, MARK], params(mode="image-only", guidance_scale=2.0 if twin else 1.0))
    with pytest.raises(Internal, match="not finite"):
        bad.result(60)
    asked = params(mode="text-only", max_tokens=25)
    assert_same(good.result(60).choices[0], slow_generation(MODEL, prompt_of(7), asked))
    assert bench.value("nonfinite_outputs_total", phase="inference") == 1
    bench.assert_idle()


def test_cancelling_ends_the_work_within_a_step(start: Start) -> None:
    gate = Gate()
    bench = start(HookedTokens(MODEL, before=gate))
    future = bench.submit([BOS], params(n=2, guidance_scale=2.0, mode="speech-only", max_tokens=500))
    gate.wait_reached()
    assert future.cancel()
    gate.open()
    bench.assert_idle()
    assert len(bench.batches) == 2  # the one that ran, and the probe's
    assert bench.value("cancellations_total", phase="inference") == 1


def test_a_deadline_ends_an_answer_that_runs(start: Start) -> None:
    bench = start(HookedTokens(MODEL, after=endless))
    listening = Listening(until=3)
    late = bench.submit([BOS], params(max_tokens=10_000), listener=listening)
    assert listening.reached.wait(60)
    bench.requests[0].deadline = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"while running, after .* of at most 10000 tokens"):
        late.result(60)
    bench.assert_idle()


def test_a_listener_that_raises_fails_its_own_answer_only(start: Start) -> None:
    def broken(event: object) -> None:
        raise RuntimeError("a secret of ours")

    bench = start()
    bad, good = bench.submit([BOS], params(), listener=broken), bench.submit([BOS], params())
    with pytest.raises(Internal) as error:
        bad.result(60)
    assert "secret" not in str(error.value)
    assert good.result(60).choices
    bench.assert_idle()
