"""Generations that are refused, are too late or cancelled, or find no room; and that nothing of them is left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import pytest

from service.codecs.prompt import PromptPart, TokensPart
from service.errors import DeadlineExceeded, Draining, EngineDown, InvalidInput, Overloaded, TooLarge
from tests.engine.clips import Gate
from tests.engine.generations import HookedTokens, Listening
from tests.generation_runtimes import SEVEN, assert_nothing_inside, gate_trio, generate, read
from tests.runtimes import StartRuntime
from tests.trio import build_trio, build_words


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_trio(tmp_path_factory.mktemp("checkpoints") / "trio")


@pytest.mark.parametrize(
    ("prompt", "asked", "error", "loc"),
    [
        (SEVEN, {"mode": "video-only"}, InvalidInput, ("mode",)),
        (SEVEN, {"n": 9}, InvalidInput, ("n",)),
        (SEVEN, {"n": 5, "guidance_scale": 2.0}, InvalidInput, ("n",)),
        (SEVEN, {"n": 10**12}, InvalidInput, ("n",)),
        (SEVEN, {"max_tokens": 98}, InvalidInput, ("max_tokens",)),
        ([TokensPart("text", [1] * 101)], {}, TooLarge, ("prompt",)),
        ([TokensPart("text", [1] * 10**6)], {}, TooLarge, ("prompt",)),
        ([TokensPart("image", [0] * 16), TokensPart("image", [7] * 16)], {}, InvalidInput, ("prompt", 1, "ids", 0)),
    ],
    ids=["mode", "n", "twins", "n beyond all", "answer too long", "prompt too long", "a million", "code"],
)
def test_what_cannot_be_done_names_its_field_and_leaves_nothing(
    start_runtime: StartRuntime,
    trio: Path,
    prompt: Sequence[PromptPart],
    asked: dict[str, Any],
    error: type[InvalidInput],
    loc: tuple[str | int, ...],
) -> None:
    runtime = start_runtime(trio, max_steps=100)
    with pytest.raises(error) as refusal:
        generate(runtime, prompt, **asked).result(60)
    assert [fault.loc for fault in refusal.value.errors] == [loc]
    assert_nothing_inside(runtime)
    assert read(runtime, "tokens_total", model="trio", modality="text", direction="input") is None


def test_as_many_choices_as_there_are_slots(start_runtime: StartRuntime, trio: Path) -> None:
    runtime = start_runtime(trio, slots=8)
    assert len(generate(runtime, n=8).result(60).choices) == 8
    assert len(generate(runtime, n=4, guidance_scale=2.0).result(60).choices) == 4


def test_a_model_without_codecs_has_no_stop_strings(start_runtime: StartRuntime, tmp_path: Path) -> None:
    runtime = start_runtime(build_trio(tmp_path / "bare", bare=True))
    with pytest.raises(InvalidInput, match="stop: this model has no text codec"):
        generate(runtime, [TokensPart("text", [3])], stop=(b"x",))
    assert generate(runtime, [TokensPart("text", [3])]).result(60).choices


def test_a_model_of_text_without_bos_needs_a_prompt(start_runtime: StartRuntime, tmp_path: Path) -> None:
    runtime = start_runtime(build_words(tmp_path / "words"))
    with pytest.raises(InvalidInput, match="prompt: it is empty"):
        generate(runtime, []).result(60)
    assert generate(runtime).result(60).choices


def test_cancelling_ends_the_work_and_its_news(start_runtime: StartRuntime, trio: Path) -> None:
    runtime = start_runtime(trio)
    gate, listening, runner = Gate(), Listening(), runtime.model(None, "generation").lane.runner
    decoding = HookedTokens(runner.model, before=lambda chunk: gate() if len(chunk.reads) else None)  # type: ignore[arg-type]
    runner.model = decoding
    answer = generate(runtime, mode="image-only", n=2, guidance_scale=2.0, max_tokens=500, listener=listening)
    gate.wait_reached()
    assert read(runtime, "state_slots", model="trio", state="used") == 4
    assert answer.cancel()
    gate.open()
    assert_nothing_inside(runtime)
    assert read(runtime, "batch_size_count", model="trio", phase="decode") == 1  # the one that ran
    assert not listening.told
    with pytest.raises(CancelledError):
        answer.result(0)


def test_a_deadline_strikes_in_the_workers_and_in_the_engine(
    start_runtime: StartRuntime, trio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = start_runtime(trio)
    with pytest.raises(DeadlineExceeded, match="before its prompt was encoded"):
        generate(runtime, deadline=0.0).result(60)
    gate, requests, far = gate_trio(runtime), [], time.monotonic() + 1000
    engine_submit = runtime.engine.submit

    def spy(lane: str, submitted: list[Any]) -> list[Future[Any]]:
        requests.extend(submitted)
        return engine_submit(lane, submitted)

    monkeypatch.setattr(runtime.engine, "submit", spy)
    late = generate(runtime, deadline=far, max_tokens=500)
    gate.wait_reached()
    assert [request.deadline for request in requests] == [far]
    requests[0].deadline = time.monotonic()
    gate.open()
    with pytest.raises(DeadlineExceeded, match="while running"):
        late.result(60)
    assert_nothing_inside(runtime)


def test_admission_counts_every_slot(start_runtime: StartRuntime, trio: Path) -> None:
    runtime = start_runtime(trio, slots=4, max_waiting=3)
    gate = gate_trio(runtime)
    futures = [generate(runtime, n=2, guidance_scale=2.0), generate(runtime, n=3)]
    gate.wait_reached()
    with pytest.raises(Overloaded):
        generate(runtime)
    gate.open()
    for future in futures:
        future.result(60)
    assert_nothing_inside(runtime)


def test_a_service_that_closes_or_is_dead_refuses(start_runtime: StartRuntime, trio: Path) -> None:
    runtime = start_runtime(trio)
    runtime.engine.stop()
    with pytest.raises(EngineDown):
        generate(runtime)
    runtime.draining = True
    with pytest.raises(Draining):
        generate(runtime)
    assert runtime.admission.inside == 0
