"""Generations through the engine equal those done slowly and alone, whoever else is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from service.engine.generation import ChoiceEnded, ChoiceResult
from service.engine.params import SamplingParams
from service.engine.request import Work
from tests.engine.generations import MODEL, TRIO, Generations, Listening, Start, assert_same, prompt_of
from tests.engine.slow import slow_generation
from tests.generators import params, text_vocabulary, tiny_model

WORDS = text_vocabulary(40)
WORD_MODEL = tiny_model(WORDS)


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
