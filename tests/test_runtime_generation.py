"""Generations through the runtime: prompts in, answers out, what is told of models, metrics."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
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
from service.engine.generation import ChoiceEnded
from service.errors import InvalidInput, NotFound
from service.features.types import Steps
from service.models.generative_checkpoint import load_generative
from service.served import media_limits
from tests.engine.generations import Listening
from tests.engine.slow import slow_generation
from tests.generation_runtimes import SEVEN, assert_nothing_inside, generate, read
from tests.generators import params
from tests.runtimes import StartRuntime, submit
from tests.trio import TRIO, build_trio, png, wav


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_trio(tmp_path_factory.mktemp("checkpoints") / "trio")


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
