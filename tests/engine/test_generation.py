"""Generations through the engine equal those done slowly and alone, and leave nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.engine.generation import ChoiceEnded, ChoiceResult
from service.engine.params import SamplingParams
from service.engine.request import Work
from service.errors import DeadlineExceeded, Internal
from service.models.base import TokenChunk
from tests.engine.clips import Gate
from tests.engine.generations import Generations, HookedTokens, Listening
from tests.engine.slow import slow_generation
from tests.generators import params, text_vocabulary, tiny_model, tiny_vocabulary

TRIO = tiny_vocabulary()
MODEL = tiny_model(TRIO)
WORDS = text_vocabulary(40)
WORD_MODEL = tiny_model(WORDS)
BOS = TRIO.bos or 0
MARK = 200  # a prompt's token that the models below react to
Start = Callable[..., Generations]


@pytest.fixture
def start() -> Generator[Start, None, None]:
    benches = []

    def start(model: Any = MODEL, **limits: Any) -> Generations:
        vocabulary = limits.pop("vocabulary", TRIO)
        benches.append(Generations(model, vocabulary, **limits))
        return benches[-1]

    yield start
    for bench in benches:
        bench.engine.stop()


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [BOS, *np.random.default_rng(seed).integers(0, MARK, length - 1).tolist()]


def endless(chunk: TokenChunk, logits: Tensor) -> Tensor:
    """Logits by which no answer ends before its budget."""
    logits = logits.clone()
    logits[:, TRIO.eos] = -1000
    return logits


def assert_same(answer: ChoiceResult, alone: ChoiceResult) -> None:
    """Equal, log probabilities to 1e-4."""
    assert answer.tokens == alone.tokens
    assert (answer.finish_reason, answer.text_bytes_dropped) == (alone.finish_reason, alone.text_bytes_dropped)
    assert len(answer.logprobs) == len(alone.logprobs)
    for a, b in zip(answer.logprobs, alone.logprobs, strict=True):
        assert (a.choice, a.token, a.forced) == (b.choice, b.token, b.forced)
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        assert [i for i, _ in a.top] == [i for i, _ in b.top]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"mode": "text-only", "repetition_penalty": 1.7, "logprobs": 3},
        {"mode": "image-only", "max_tokens": 24},
        {"mode": "image-only", "guidance_scale": 3.0, "max_tokens": 24, "logprobs": 2},
        {"mode": "speech-only", "guidance_scale": 1.5, "n": 2},
        {"guidance_scale": 2.0, "n": 3, "top_k": 30, "top_p": 0.9, "logprobs": 0},
        {"n": 4, "stop": (b"e", b"a\xe3")},
    ],
    ids=lambda asked: ",".join(asked) or "plain",
)
def test_answers_are_those_of_each_choice_alone(start: Start, asked: dict[str, Any], temperature: float) -> None:
    bench = start()
    listening = Listening()
    lengths = (1, 6, 23)
    given = [params(**{"temperature": temperature, "seed": 5 + length, **asked}) for length in lengths]
    futures = [
        bench.submit(prompt_of(length), each, listener=listening if length == 23 else lambda event: None)
        for length, each in zip(lengths, given, strict=True)
    ]
    for length, each, future in zip(lengths, given, futures, strict=True):
        answer = future.result(60)
        for choice, result in enumerate(answer.choices):
            assert_same(result, slow_generation(MODEL, prompt_of(length), each, choice))
        assert answer.prompt_tokens == {"text": length}
        assert 0 <= answer.queue_s <= answer.first_token_s <= answer.total_s
    for choice, result in enumerate(answer.choices):
        assert listening.tokens(choice) == result.tokens
        assert listening.told[choice][-1] == ChoiceEnded(choice, result.finish_reason, result.text_bytes_dropped)
    bench.assert_idle()


def test_the_answers_above_are_of_every_kind() -> None:
    """Or they would show little: media among them, ends by eos and by budget, draws that guidance changes."""
    answers = [
        slow_generation(MODEL, prompt_of(9, seed), params(temperature=1.0, seed=seed, max_tokens=30))
        for seed in range(6)
    ]
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    assert {TRIO.modality(token) for answer in answers for token in answer.tokens} == {"text", "image", "speech"}
    guided = params(mode="image-only", guidance_scale=3.0)
    plain = params(mode="image-only")
    assert slow_generation(MODEL, prompt_of(23), guided).tokens != slow_generation(MODEL, prompt_of(23), plain).tokens
    greedy = {slow_generation(MODEL, prompt_of(9, seed), plain).tokens for seed in range(6)}
    assert len(greedy) > 3


def test_a_model_without_bos_is_run_from_its_first_token(start: Start) -> None:
    bench = start(WORD_MODEL, vocabulary=WORDS)
    for prompt in ([3], [3, 9, 1, 30, 7, 7, 2]):
        asked = params(WORDS, n=2, temperature=1.0, guidance_scale=2.0)
        answer = bench.submit(prompt, asked).result(60)
        for choice, result in enumerate(answer.choices):
            assert_same(result, slow_generation(WORD_MODEL, prompt, asked, choice))
    assert all(len({work.slot for work in batch.works}) <= 2 for batch in bench.batches)  # text has no twin
    bench.assert_idle()


MODES: list[dict[str, Any]] = [
    {"mode": "text-only"},
    {"mode": "image-only", "guidance_scale": 2.0},
    {"mode": "speech-only", "n": 2},
    {"guidance_scale": 1.5, "n": 2, "max_tokens": 30},
]


def mixed(count: int, **more: Any) -> list[tuple[list[int], SamplingParams]]:
    lengths = np.random.default_rng(1).integers(1, 40, count).tolist()
    return [(prompt_of(n, seed), params(**MODES[seed % 4], seed=seed, **more)) for seed, n in enumerate(lengths)]


@pytest.fixture(scope="module")
def lone() -> list[tuple[ChoiceResult, ...]]:
    """The answers to mixed(64), one after the other."""
    bench = Generations(MODEL, TRIO)
    answers = [bench.submit(*each).result(60).choices for each in mixed(64)]
    bench.engine.stop()
    return answers


@pytest.mark.parametrize("cancelled", [0, 32])
def test_sixty_four_at_once_equal_their_lone_runs(
    start: Start, lone: list[tuple[ChoiceResult, ...]], cancelled: int
) -> None:
    bench = start(slots=40, chunk_steps=7, step_budget=90)
    work = mixed(64)
    listening = [Listening(until=3) for _ in work]
    futures = [bench.submit(*each, listener=heard) for each, heard in zip(work, listening, strict=True)]
    gone = set(range(0, 2 * cancelled, 2))
    for number in gone:
        assert listening[number].reached.wait(60)
        futures[number].cancel()
    for future, choices in zip(futures, lone, strict=True):
        if not future.cancelled():
            assert future.result(60).choices == choices
    assert sum(future.cancelled() for future in futures) >= cancelled / 2  # some were quicker than their client
    bench.assert_idle()


def test_the_same_seed_gives_the_same_answer_whoever_else_is_there(start: Start) -> None:
    asked = params(temperature=1.0, seed=99, n=3, guidance_scale=2.0, max_tokens=40)
    lone, crowded = start(), start(slots=30, step_budget=80)
    crowd = [crowded.submit(*each) for each in mixed(20, temperature=1.0)]
    futures = [crowded.submit(prompt_of(12), asked) for _ in range(3)]
    alone = lone.submit(prompt_of(12), asked).result(60).choices
    assert all(future.result(60).choices == alone for future in futures)
    assert len({choice.tokens for choice in alone}) == 3
    fewer = lone.submit(prompt_of(12), params(**(vars(asked) | {"n": 2}))).result(60).choices
    assert fewer == alone[:2]
    for future in crowd:
        future.result(60)


def test_logits_agree_to_1e_5_whatever_the_batch(start: Start) -> None:
    work = [(prompt, asked) for prompt, asked in mixed(12) if asked.guidance_scale == 1]

    def logits_of(bench: Generations, work: list[tuple[list[int], SamplingParams]]) -> dict[Any, Any]:
        seen: dict[Any, Any] = {}
        outputs = bench.runner.outputs

        def keep(works: Sequence[Work], values: Sequence[Any]) -> Sequence[Any]:
            for each, logits in zip(works, values, strict=True):
                if each.decode:
                    seen[each.request.program.prompt, each.row, each.start] = logits
            return outputs(works, values)

        bench.runner.outputs = keep  # type: ignore[method-assign]
        for future in [bench.submit(*each) for each in work]:
            future.result(60)
        return seen

    together = logits_of(start(slots=20, step_budget=60), work)
    alone = {key: logits for each in work for key, logits in logits_of(start(), [each]).items()}
    assert together.keys() == alone.keys()
    assert len(alone) > 50
    for key, logits in alone.items():
        np.testing.assert_allclose(together[key], logits, atol=1e-5, rtol=1e-5)


def test_guidance_takes_a_second_slot_and_scale_1_does_not(start: Start) -> None:
    for asked, used in (({"guidance_scale": 2.0}, 4), ({}, 2), ({"guidance_scale": 2.0, "mode": "text-only"}, 2)):
        gate = Gate()
        bench = start(HookedTokens(MODEL, before=gate))
        future = bench.submit(prompt_of(3), params(n=2, **asked))
        gate.wait_reached()
        assert bench.used() == used
        gate.open()
        future.result(60)
        bench.assert_idle()


def test_a_choice_and_its_twin_are_always_in_one_batch(start: Start) -> None:
    bench = start(slots=8, step_budget=17)
    futures = [
        bench.submit(prompt_of(20, seed), params(mode="image-only", guidance_scale=2.0, n=2, max_tokens=30))
        for seed in range(5)
    ]
    for future in futures:
        future.result(60)
    twins = 0
    for batch in bench.batches:
        rows = {(work.request, work.row) for work in batch.works}
        for work in batch.works:
            if work.row >= 2:
                twins += 1
                assert (work.request, work.row - 2) in rows
        assert batch.steps <= 17
    assert twins > 5 * 2 * 10


def test_the_prompt_runs_once_for_all_choices_and_in_chunks_beside_the_decoding_of_others(start: Start) -> None:
    bench = start(HookedTokens(MODEL, after=endless), slots=4, chunk_steps=5, step_budget=12)
    listening = Listening(until=3)
    early = bench.submit(prompt_of(2), params(mode="text-only", max_tokens=10_000), listener=listening)
    assert listening.reached.wait(60)
    late = bench.submit(prompt_of(42), params(n=3, max_tokens=4))
    late.result(60)
    early.cancel()
    prefill = [work for batch in bench.batches for work in batch.works if not work.decode]
    assert sum(work.steps for work in prefill) == 1 + 41
    assert all(work.steps <= 5 for work in prefill)
    for batch in bench.batches:
        if any(not work.decode and work.stop > 1 for work in batch.works):
            assert any(work.decode for work in batch.works)  # the early one had its token in every step
    assert [len(batch.forks) for batch in bench.batches if batch.forks] == [2]


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


def test_the_phase_of_a_batch_is_in_the_metrics(start: Start) -> None:
    bench = start()
    bench.submit(prompt_of(8), params(max_tokens=6, mode="text-only", temperature=1.0)).result(60)
    bench.engine.stop()
    counts = [bench.value("batch_size_count", model="tiny", phase=phase) for phase in ("prefill", "decode", "step")]
    decoded = [batch for batch in bench.batches if batch.phase == "decode"]
    assert counts == [2, len(decoded), None]
