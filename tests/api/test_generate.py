"""POST /generate as a whole: what it answers, to which prompts, by which models."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.generate_schemas import GenerationOut
from service.runtime import Runtime
from tests.api.generation import MOST, PROMPT, Generate, picture_size, running, sound_seconds
from tests.trio import TRIO, build_trio, build_words, png, wav

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def folders(tiny_checkpoint: Path, trio_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A model of sentiment; trio; trio without codecs; a model of text alone."""
    root = tmp_path_factory.mktemp("generate")
    return [
        tiny_checkpoint,
        trio_checkpoint,
        build_trio(root / "bare", name="bare", bare=True),
        build_words(root / "words"),
    ]


@pytest.fixture(scope="module")
def runtime(folders: list[Path]) -> Generator[Runtime, None, None]:
    with running(*folders) as runtime:
        yield runtime


def count(body: Any) -> int:
    total: int = sum(body["usage"]["completion_tokens"].values())
    return total


async def test_answers_with_what_the_contract_names(client: httpx.AsyncClient, mixed: int) -> None:
    response = await client.post("/generate", json={"prompt": PROMPT, "max_tokens": MOST, "seed": mixed})
    assert response.status_code == 200
    body = response.json()
    GenerationOut.model_validate(body)
    assert set(body) == {"id", "model", "choices", "seed", "deterministic", "usage", "timing_ms"}
    assert body["id"].startswith("gen_")
    assert response.headers["x-request-id"] == body["id"]
    assert (body["model"], body["seed"]) == ("trio", mixed)
    (choice,) = body["choices"]
    assert set(choice) == {"index", "finish_reason", "content"}
    parts = choice["content"]
    assert {part["type"] for part in parts} == {"text", "image", "audio"}
    assert all(part["text"] for part in parts if part["type"] == "text")
    pictures = [picture_size(part) for part in parts if part["type"] == "image"]
    assert set(pictures) == {(16, 16)}
    drawn = body["usage"]["completion_tokens"]
    assert drawn["image"] == 16 * len(pictures)
    assert sum(sound_seconds(part) for part in parts if part["type"] == "audio") == pytest.approx(
        drawn["speech"] * 0.04
    )
    assert (choice["finish_reason"] == "length") == (count(body) == MOST)
    prompt = sum(body["usage"]["prompt_tokens"].values())
    assert body["usage"]["cached_tokens"] == prompt - 1  # it came before, when a seed was looked for
    assert body["usage"]["prompt_tokens"].keys() == {"text"}
    times = body["timing_ms"]
    assert 0 <= times["queue"] <= times["first_token"] <= times["total"]


async def test_a_seed_gives_the_same_answer_again_and_is_told_where_none_came(generate: Generate) -> None:
    one, two = await generate(seed=None), await generate(seed=None)
    assert one["seed"] != two["seed"]
    again = await generate(seed=one["seed"])
    assert again["choices"] == one["choices"]


async def test_the_prompt_is_a_string_or_parts_in_their_order(generate: Generate) -> None:
    text = {"type": "text", "text": PROMPT}
    picture = {"type": "image", "data": base64.b64encode(png()).decode()}
    sound = {"type": "audio", "data": base64.b64encode(wav()).decode()}
    codes = {"type": "tokens", "modality": "image", "ids": [0] * 16}
    whole = await generate()
    parts = await generate([text])
    assert parts["choices"] == whole["choices"]
    forth, back = await generate([picture, text, sound, codes]), await generate([sound, text, picture, codes])
    assert forth["usage"]["prompt_tokens"] == back["usage"]["prompt_tokens"]
    assert forth["usage"]["prompt_tokens"]["image"] == 32
    assert forth["usage"]["prompt_tokens"]["speech"] >= 1
    assert forth["choices"] != back["choices"]


async def test_raw_ids_and_log_probabilities(generate: Generate) -> None:
    body = await generate(tokens=True, logprobs=3)
    (choice,) = body["choices"]
    assert len(choice["tokens"]) == count(body)
    assert [drawn["token"] for drawn in choice["logprobs"]] == choice["tokens"]
    for drawn in choice["logprobs"]:
        assert drawn["modality"] == TRIO.modality(drawn["token"])
        word = drawn["modality"] == "text" and drawn["token"] not in TRIO.sentinels
        assert (drawn["text"] is not None) == word
        assert drawn["logprob"] <= 0
        assert len(drawn["top"]) <= 3
        assert [alternative["logprob"] for alternative in drawn["top"]] == sorted(
            (alternative["logprob"] for alternative in drawn["top"]), reverse=True
        )
    none = (await generate(logprobs=0))["choices"][0]["logprobs"]
    assert {len(drawn["top"]) for drawn in none} == {0}


async def test_without_codecs_the_ids_are_the_content_and_can_be_sent_back(generate: Generate) -> None:
    prompt = [{"type": "tokens", "modality": "text", "ids": [5, 6]}]
    body = await generate(prompt, model="bare", tokens=True)
    content = body["choices"][0]["content"]
    assert {part["type"] for part in content} == {"tokens"}
    assert len({part["modality"] for part in content}) > 1
    again = await generate(content, model="bare", max_tokens=1, mode="text-only")
    sentinels = 2 * sum(part["modality"] != "text" for part in content)
    assert sum(again["usage"]["prompt_tokens"].values()) == 1 + sentinels + sum(len(part["ids"]) for part in content)


async def test_models_are_named_or_the_first_that_can(generate: Generate, client: httpx.AsyncClient) -> None:
    assert (await generate(model="words"))["model"] == "words"
    answer = await client.post("/generate", json={"prompt": PROMPT, "model": "none"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    answer = await client.post("/generate", json={"prompt": PROMPT, "model": "tiny"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["model"]
    assert "trio, bare, words" in answer.json()["detail"]
    answer = await client.post("/predict", json={"features": {"audio": [[1, 2, 3, 4, 5]]}, "model": "trio"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["model"]
    assert "tiny" in answer.json()["detail"]


async def test_the_models_are_told_with_their_tasks(client: httpx.AsyncClient) -> None:
    body = (await client.get("/models")).json()
    assert body["defaults"] == {"sentiment": "tiny", "generation": "trio"}
    card = (await client.get("/models/trio")).json()
    assert (card["task"], card["architecture"]) == ("generation", "mixture-of-mamba")
    assert card["vocabulary"]["sizes"] == {"text": 286, "image": 7, "speech": 5}
    assert card["generation"]["guidance_scale"] == 1
    assert card["codecs"] == {
        "text": {"kind": "byte-level BPE", "ids": 280},
        "image": {"size": [16, 16], "channels": 1, "grid": [4, 4], "codes": 7},
        "speech": {"rate": 8000, "codes": 5, "unit_seconds": 0.04, "max_seconds": 0.24},
    }
    assert card["limits"]["tokens"] == 4096
    assert (await client.get("/models/bare")).json()["codecs"] == {}
    assert card["modes"] == ["text-only", "image-only", "speech-only", "interleaved"]


async def test_together_each_gets_what_it_gets_alone(generate: Generate) -> None:
    modes = ("interleaved", "text-only", "image-only", "speech-only")
    asked = [{"mode": modes[seed % 4], "seed": seed, "temperature": 0} for seed in range(24)]
    alone = [await generate(**fields) for fields in asked]
    together = await asyncio.gather(*(generate(**fields) for fields in asked))
    assert [body["choices"] for body in together] == [body["choices"] for body in alone]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_media_are_encoded_on_threads_of_their_own(
    client: httpx.AsyncClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    image, threads = runtime.model("trio", "generation").codecs.image, set()
    assert image is not None
    encode = image.png

    def png(*arguments: Any) -> bytes:
        threads.add(threading.current_thread())
        return encode(*arguments)

    monkeypatch.setattr(image, "png", png)
    body = {"prompt": PROMPT, "mode": "image-only", "max_tokens": 20, "stream": stream}
    assert (await client.post("/generate", json=body)).status_code == 200
    assert threads
    assert not threads & {threading.current_thread(), *(t for t in threading.enumerate() if t.name == "engine")}
