"""How the answers of POST /generate are drawn, and where they end: what a request says, and what a checkpoint does."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest

from service.runtime import Runtime
from tests.api.generation import Generate, running
from tests.trio import build_trio

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def runtime(trio_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Runtime, None, None]:
    """trio, and trio with defaults of its own."""
    generation = {"temperature": {"text": 0, "image": 1, "speech": 1}, "guidance_scale": 2.0}
    guided = build_trio(tmp_path_factory.mktemp("sampling") / "guided", name="guided", generation=generation)
    with running(trio_checkpoint, guided) as runtime:
        yield runtime


async def test_answers_of_one_request_differ_unless_nothing_is_drawn(generate: Generate) -> None:
    drawn = (await generate(n=4, max_tokens=12))["choices"]
    assert [choice["index"] for choice in drawn] == [0, 1, 2, 3]
    assert len({json.dumps(choice["content"]) for choice in drawn}) == 4
    greedy = (await generate(n=3, max_tokens=12, temperature=0))["choices"]
    assert greedy[0]["content"] == greedy[1]["content"] == greedy[2]["content"]


@pytest.mark.parametrize(
    ("mode", "kinds"), [("text-only", {"text"}), ("image-only", {"image"}), ("speech-only", {"audio"})]
)
async def test_the_mode_says_what_comes(generate: Generate, mode: str, kinds: set[str]) -> None:
    for seed in range(5):
        content = (await generate(mode=mode, seed=seed))["choices"][0]["content"]
        assert {part["type"] for part in content} == kinds


async def test_a_stop_string_ends_the_answer_and_is_not_in_it(generate: Generate) -> None:
    for seed in range(20):
        (whole,) = (await generate(mode="text-only", seed=seed))["choices"]
        text = "".join(part["text"] for part in whole["content"])
        if (stop := next((character for character in text[3:] if character.isascii()), None)) is not None:
            break
    assert stop is not None
    (choice,) = (await generate(mode="text-only", seed=seed, stop=[stop, "never"]))["choices"]
    assert choice["finish_reason"] == "stop"
    assert "".join(part["text"] for part in choice["content"]) == text[: text.index(stop)]


async def test_what_is_not_said_is_as_the_checkpoint_has_it(generate: Generate) -> None:
    unlike = [await generate(model="guided", mode="text-only", seed=seed) for seed in (1, 2)]
    assert unlike[0]["choices"] == unlike[1]["choices"]  # its text is greedy
    drawn = [await generate(model="guided", mode="text-only", seed=seed, temperature={"text": 1}) for seed in (1, 2)]
    assert drawn[0]["choices"] != drawn[1]["choices"]
    picture = {"model": "guided", "mode": "image-only", "logprobs": 0}
    guided = await generate(**picture)
    assert guided["choices"] == (await generate(**picture, guidance_scale=2))["choices"]
    assert guided["choices"] != (await generate(**picture, guidance_scale=1))["choices"]


async def test_values_by_modality_hold_for_theirs(generate: Generate) -> None:
    top_k = {"image": 1, "speech": 1}
    one, two = [await generate(mode="image-only", seed=seed, top_k=top_k) for seed in (1, 2)]
    assert one["choices"][0]["content"][0] == two["choices"][0]["content"][0]
    one, two = [await generate(mode="image-only", seed=seed, top_k={"text": 1}) for seed in (1, 2)]
    assert one["choices"] != two["choices"]
    assert (await generate(top_k=10**9))["choices"] == (await generate())["choices"]
