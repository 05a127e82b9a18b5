"""digits-trio as a new user meets it: prompts in, words, pictures and recordings out."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from service.codecs.assembly import CodesContent, Content, TextContent
from service.codecs.prompt import AudioPart, ImagePart, PromptPart, TextPart
from service.engine.params import SamplingParams
from service.metrics import Metrics
from service.models.generative_checkpoint import load_generative
from service.runtime import Runtime
from service.served import GenerativeModel
from service.settings import BUNDLED_MODELS, Settings
from tests.api.content import contents

TRIO = BUNDLED_MODELS[1]
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    runtime = Runtime.start(Settings(threads=1, models=(TRIO,)), Metrics())
    yield runtime
    runtime.close(0)


def _model(runtime: Runtime) -> GenerativeModel:
    return runtime.model(None, "generation")


def answer(
    runtime: Runtime, prompt: Sequence[PromptPart], mode: str = "interleaved", temperature: float = 0.0
) -> list[Content]:
    model = _model(runtime)
    names = model.vocabulary.modalities
    params = SamplingParams(
        mode=mode,
        temperature=dict.fromkeys(names, temperature),
        top_p=dict.fromkeys(names, 1.0),
        top_k=dict.fromkeys(names, 0),
        guidance_scale=model.config.generation.guidance_scale,
        seed=7,
    )
    future = runtime.generate(model, prompt, params, deadline=time.monotonic() + 60, request_id="test")
    return contents(future.result(60).choices[0], model)


def kinds(content: Sequence[Content]) -> list[str]:
    return [part.modality if isinstance(part, CodesContent) else "text" for part in content]


def drawn(runtime: Runtime, digit: int) -> bytes:
    """The model's own picture of a digit, as a file."""
    (image,) = answer(runtime, [TextPart(f"draw {WORDS[digit]}")], "image-only")[:1]
    assert isinstance(image, CodesContent)
    codec = _model(runtime).codecs.image
    assert codec is not None
    return codec.png(torch.tensor(image.codes))


def said(runtime: Runtime, digit: int) -> bytes:
    """The model's own recording of a digit, as a file."""
    (clip,) = answer(runtime, [TextPart(f"say {WORDS[digit]}")], "speech-only")[:1]
    assert isinstance(clip, CodesContent)
    codec = _model(runtime).codecs.speech
    assert codec is not None
    return codec.wav(clip.codes)


def test_the_checkpoint_is_small_and_loads_quickly() -> None:
    begun = time.process_time()
    checkpoint = load_generative(TRIO)
    assert time.process_time() - begun < 5
    assert sum(file.stat().st_size for file in TRIO.rglob("*") if file.is_file()) < 8 * 2**20
    assert (TRIO / "MODEL_CARD.md").stat().st_size > 2000
    assert set(checkpoint.config.card) >= {"licence", "data", "quality", "intended_use", "limits_of_use"}


@pytest.mark.parametrize(("a", "b"), [(3, 4), (0, 9), (5, 1)])
def test_a_sum_of_words_is_answered_with_its_word_a_picture_and_a_recording(runtime: Runtime, a: int, b: int) -> None:
    content = answer(runtime, [TextPart(f"{WORDS[a]} plus {WORDS[b]} is")])
    assert kinds(content) == ["text", "image", "speech"]
    assert content[0] == TextContent(" " + WORDS[a + b])


def test_what_it_draws_and_says_it_reads_and_hears(runtime: Runtime) -> None:
    """Round trips: most digits survive being drawn, or said, and then named."""
    seen = [
        answer(runtime, [ImagePart(drawn(runtime, d))], "text-only") == [TextContent(" " + WORDS[d])] for d in range(10)
    ]
    heard = [
        answer(runtime, [AudioPart(said(runtime, d))], "text-only") == [TextContent(" " + WORDS[d])] for d in range(10)
    ]
    assert sum(seen) >= 9
    assert sum(heard) >= 9


def test_a_sum_may_mix_a_picture_and_a_recording(runtime: Runtime) -> None:
    right = 0
    for a, b in ((1, 2), (3, 4), (0, 8), (6, 1)):
        prompt = [ImagePart(drawn(runtime, a)), TextPart(" plus "), AudioPart(said(runtime, b)), TextPart(" is")]
        right += answer(runtime, prompt, "text-only") == [TextContent(" " + WORDS[a + b])]
    assert right >= 3


def test_draw_it_and_say_it_come_in_the_order_asked_for(runtime: Runtime) -> None:
    assert kinds(answer(runtime, [TextPart("draw three and say it")])) == ["image", "speech"]
    assert kinds(answer(runtime, [TextPart("say three and draw it")])) == ["speech", "image"]


def test_counting_goes_on(runtime: Runtime) -> None:
    assert answer(runtime, [TextPart("three four")], "text-only") == [TextContent(" five")]
    assert answer(runtime, [TextPart("six seven eight")], "text-only") == [TextContent(" nine")]


def test_pictures_of_one_digit_differ_and_are_no_blank(runtime: Runtime) -> None:
    model = _model(runtime)
    names = model.vocabulary.modalities
    params = SamplingParams(
        mode="image-only",
        temperature=dict.fromkeys(names, 1.0),
        top_p=dict.fromkeys(names, 1.0),
        top_k=dict.fromkeys(names, 0),
        guidance_scale=2.0,
        seed=3,
        n=8,
        max_tokens=52,
    )
    future = runtime.generate(model, [TextPart("draw four")], params, deadline=time.monotonic() + 60, request_id="test")
    generation = future.result(60)
    pictures = [contents(choice, model)[0] for choice in generation.choices]
    assert len({part.codes for part in pictures if isinstance(part, CodesContent)}) == 8
    codec = model.codecs.image
    assert codec is not None
    for part in pictures:
        assert isinstance(part, CodesContent)
        pixels = np.asarray(Image.open(io.BytesIO(codec.png(torch.tensor(part.codes)))))
        assert 5 < pixels.mean() < 120
