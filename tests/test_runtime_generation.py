"""Generations through the runtime: prompts in, answers out, limits, refusals, metrics."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.codecs.prompt import (
    LIGHT_CHARS,
    AudioPart,
    ImagePart,
    PromptPart,
    TextPart,
    TokensPart,
    encode_parts,
    encode_prompt,
)
from service.engine.generation import ChoiceEnded, Generation
from service.errors import DeadlineExceeded, Draining, EngineDown, InvalidInput, NotFound, Overloaded, TooLarge
from service.features.types import Steps
from service.models.generative_checkpoint import load_generative
from service.runtime import Runtime
from service.served import media_limits
from tests.engine.clips import Gate
from tests.engine.generations import HookedTokens, Listening
from tests.engine.slow import slow_generation
from tests.generators import params
from tests.runtimes import StartRuntime, submit
from tests.trio import TRIO, build_trio, build_words, png, wav

SEVEN: Sequence[PromptPart] = (TextPart("draw seven"),)


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_trio(tmp_path_factory.mktemp("checkpoints") / "trio")


def generate(
    runtime: Runtime, prompt: Sequence[PromptPart] = SEVEN, *, name: str | None = None, **asked: Any
) -> Future[Generation]:
    call = {key: asked.pop(key) for key in ("deadline", "listener", "session_id") if key in asked}
    model = runtime.model(name, "generation")
    given = params(model.vocabulary, **asked)
    return runtime.generate(model, prompt, given, **({"deadline": None, "request_id": "test"} | call))


def gate_trio(runtime: Runtime) -> Gate:
    gate, runner = Gate(), runtime.model("trio", "generation").lane.runner
    runner.model = HookedTokens(runner.model, before=gate)  # type: ignore[arg-type]
    return gate


def assert_nothing_inside(runtime: Runtime) -> None:
    gauges = {"requests_running": {}, "requests_waiting": {}, "state_slots": {"state": "used"}}
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        values = [read(runtime, name, model="trio", **labels) for name, labels in gauges.items()]
        if (runtime.admission.inside, values) == (0, [0, 0, 0]):
            return
        time.sleep(0.005)
    pytest.fail(f"left inside: {runtime.admission.inside}, {values}")


def read(runtime: Runtime, name: str, **labels: str) -> float | None:
    return runtime.metrics.registry.get_sample_value(f"serpentine_{name}", labels)


def test_a_prompt_of_all_kinds_gives_the_models_answer(start_runtime: StartRuntime, trio: Path) -> None:
    runtime = start_runtime(trio, slots=12)
    model = runtime.model(None, "generation")
    prompt = [TextPart("three "), ImagePart(png()), TokensPart("speech", [1, 2]), AudioPart(wav()), TextPart(" plus")]
    ids = encode_prompt(prompt, model.vocabulary, model.codecs, media_limits(runtime.settings))
    network = load_generative(trio).model
    asked = {"temperature": 1.0, "n": 2, "guidance_scale": 2.0, "seed": 3, "logprobs": 2, "max_tokens": 12}
    listening = Listening()
    answer = generate(runtime, prompt, listener=listening, **asked).result(60)
    for choice, result in enumerate(answer.choices):
        alone = slow_generation(network, ids, params(TRIO, **asked), choice)
        assert (result.tokens, result.finish_reason) == (alone.tokens, alone.finish_reason)
        assert listening.tokens(choice) == result.tokens
        assert listening.told[choice][-1] == ChoiceEnded(choice, result.finish_reason, 0)
    assert answer.prompt_tokens == Counter(map(TRIO.modality, ids))
    assert answer.deterministic == (runtime.settings.backend != "reference")  # which promises 1e-5
    assert_nothing_inside(runtime)


@pytest.mark.parametrize(
    ("prompt", "light"),
    [(SEVEN, True), ([TextPart("seven " * LIGHT_CHARS)], False), ([ImagePart(png())], False)],
    ids=["few words", "many words", "a picture"],
)
def test_only_a_prompt_that_takes_next_to_nothing_is_encoded_by_the_caller(
    start_runtime: StartRuntime,
    trio: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompt: Sequence[PromptPart],
    light: bool,
) -> None:
    names: list[str] = []

    def told(*arguments: Any) -> Any:
        names.append(threading.current_thread().name)
        return encode_parts(*arguments)

    monkeypatch.setattr("service.generating.encode_parts", told)
    runtime, here = start_runtime(trio), threading.current_thread().name
    generate(runtime, prompt, max_tokens=2).result(60)
    assert [name == here for name in names] == [light]
    assert light or names[0].startswith("features")
    id = runtime.sessions.create("trio", runtime.model("trio", "generation").snapshots.initial()).id
    generate(runtime, prompt, max_tokens=2, session_id=id).result(60)
    assert names[1].startswith("features")  # where a session is kept may be far away


def test_stop_strings_are_looked_for_in_the_codecs_text(start_runtime: StartRuntime, trio: Path) -> None:
    runtime = start_runtime(trio)
    text = runtime.model(None, "generation").codecs.text
    assert text is not None
    free = generate(runtime, mode="text-only", temperature=1.0).result(60).choices[0].tokens
    whole = b"".join(map(text.bytes_of, free))
    stop = whole[4:7]
    stopped = generate(runtime, mode="text-only", temperature=1.0, stop=(stop,)).result(60).choices[0]
    read_so_far = b"".join(map(text.bytes_of, stopped.tokens))
    assert stopped.finish_reason == "stop"
    assert whole.startswith(read_so_far)
    assert read_so_far[: len(read_so_far) - stopped.text_bytes_dropped] == whole[: whole.index(stop)]


def test_both_tasks_in_one_process(start_runtime: StartRuntime, tiny_checkpoint: Path, trio: Path) -> None:
    runtime = start_runtime(tiny_checkpoint, trio)
    assert (runtime.model(None).name, runtime.model(None, "generation").name) == ("tiny", "trio")
    assert runtime.served("trio").card["task"] == "generation"
    assert runtime.served("tiny").card["task"] == "sentiment"
    clips = [submit(runtime, {"audio": Steps(np.ones((30, 5), np.float32))}) for _ in range(4)]
    answers = [generate(runtime, seed=seed, temperature=1.0) for seed in range(4)]
    sentiments = [clip.result(60).sentiment for clip in clips]
    assert sentiments == pytest.approx(
        [sentiments[0]] * 4, abs=1e-5
    )  # of other batches, which `reference` rounds otherwise
    assert all(answer.result(60).choices for answer in answers)
    assert_nothing_inside(runtime)
    with pytest.raises(InvalidInput, match="model: trio is for generation; those for sentiment are tiny") as refusal:
        runtime.model("trio")
    assert refusal.value.errors[0].loc == ("model",)
    with pytest.raises(InvalidInput, match="model: tiny is for sentiment"):
        runtime.model("tiny", "generation")
    with pytest.raises(NotFound, match="no model 'duo'; there are tiny, trio"):
        runtime.model("duo", "generation")


def test_a_task_that_nothing_serves_is_not_found(start_runtime: StartRuntime, tiny_checkpoint: Path) -> None:
    with pytest.raises(NotFound, match="no model for generation is served; there are tiny"):
        start_runtime(tiny_checkpoint).model(None, "generation")


def test_the_card_tells_of_modes_and_ids(start_runtime: StartRuntime, trio: Path) -> None:
    card = start_runtime(trio).served("trio").card
    assert card["modes"] == ["text-only", "image-only", "speech-only", "interleaved"]
    assert card["vocabulary"] == TRIO.to_json()
    assert card["generation"]["temperature"] == {"text": 1.0, "image": 1.0, "speech": 1.0}
    assert card["parameters"] == sum(p.numel() for p in load_generative(trio).model.parameters())
    assert (card["architecture"], card["dtype"], card["licence"]) == ("mixture-of-mamba", "float32", "CC0-1.0")


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


def test_tokens_and_their_times_are_counted(start_runtime: StartRuntime, trio: Path) -> None:
    runtime = start_runtime(trio)
    prompt = [TextPart("draw"), TokensPart("image", [0] * 16)]
    answer = generate(runtime, prompt, mode="speech-only", n=2, temperature=1.0).result(60)
    assert_nothing_inside(runtime)
    drawn = Counter(TRIO.modality(token) for choice in answer.choices for token in choice.tokens)
    for direction, counts in (("input", answer.prompt_tokens), ("output", drawn)):
        for modality, count in counts.items():
            assert read(runtime, "tokens_total", model="trio", modality=modality, direction=direction) == count
    assert drawn["speech"] > 0
    assert read(runtime, "time_to_first_token_seconds_count", model="trio") == 1
    assert read(runtime, "inter_token_duration_seconds_count", model="trio") == drawn.total() - 2
    assert read(runtime, "feature_duration_seconds_count", model="trio") == 1
    assert read(runtime, "batch_size_count", model="trio", phase="decode")
