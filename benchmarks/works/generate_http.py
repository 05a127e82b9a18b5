"""What HTTP adds to generation: the running service on the loopback against its runtime driven directly.

mamba-130m has the size of a small model that people serve: its shape, random weights in bf16, words only. The bundled
digits-trio draws and speaks; a token of it takes the engine a quarter of a millisecond, so that what the edge costs
shows. Whole and as events, to 1 and to 16 at a time, without shared beginnings. Ours is the time an answer. One rival
stops at the ids; the other makes text, pictures and sounds of them too, on the edge's number of threads, so that what
is left between it and ours is HTTP. Client and service share the machine's cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import orjson
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.figures import Bench, Figure
from benchmarks.works import decode
from benchmarks.works.edge import asked, request, served
from service.api.generate_answer import Answering, generation_body
from service.codecs.prompt import TextPart
from service.codecs.text import TOKENIZER_FILE
from service.engine.generation import Generation
from service.engine.params import SamplingParams
from service.metrics import Metrics
from service.models.convert import HUGGING_FACE_MAMBA, convert
from service.runtime import Runtime
from service.settings import BUNDLED, Settings

IN_FLIGHT = (1, 16)
THREADS = 4  # of the edge
RUNTIME, CODECS = "the runtime driven directly", "the runtime and the codecs"


@dataclass(frozen=True)
class Work:
    """What is asked of a model.

    prompts  by mode
    answers  of a round, to each number in flight
    """

    name: str
    folder: Path
    dtype: Literal["float32", "bfloat16"]
    prompts: dict[str, str]
    max_tokens: int
    answers: tuple[int, ...]


TRIO = {"image-only": "draw three", "interleaved": "draw three and say it"}
WORDS = {"text-only": "once upon a time there was a king"}


def run(bench: Bench) -> Iterator[Figure]:
    """Words of a model of 130 million weights; a picture, and a picture with its word spoken, of the bundled one."""
    with tempfile.TemporaryDirectory() as folder:
        served_size = Work("mamba-130m", mamba_130m(Path(folder)), "bfloat16", WORDS, 64, (2, 16))
        yield from _figures(bench, served_size)
    yield from _figures(bench, Work("digits-trio", BUNDLED / "digits-trio", "float32", TRIO, 128, (16, 16)))


def mamba_130m(folder: Path) -> Path:
    """Keep the model in this folder, with a tokenizer whose every id is text -> where its checkpoint is."""
    peer, _ = decode.build(folder)
    peer.bfloat16().save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġ{number}" for number in range(decode.SIZES["vocab_size"] - len(letters))]
    tokenizer = Tokenizer(models.BPE({piece: id for id, piece in enumerate(letters + words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / TOKENIZER_FILE))
    convert(HUGGING_FACE_MAMBA, folder, folder / "mamba-130m")
    return folder / "mamba-130m"


def _figures(bench: Bench, work: Work) -> Iterator[Figure]:
    settings = Settings(models=(work.folder,), dtype=work.dtype, threads=1, prefix_cache_bytes=0)
    runtime = Runtime.start(settings, Metrics())
    try:
        with served(work.folder, prefix_cache_bytes="0", dtype=work.dtype) as address:
            for mode, prompt in work.prompts.items():
                fields = {"prompt": prompt, "mode": mode, "max_tokens": work.max_tokens, "seed": 7, "temperature": 0}
                messages = {
                    name: request("/generate", "application/json", orjson.dumps({**fields, **more}))
                    for name, more in (("whole", {}), ("events", {"stream": True}))
                }
                for in_flight, answers in zip(IN_FLIGHT, work.answers, strict=True):
                    direct = partial(_direct, runtime, work, mode, answers, in_flight)
                    rivals: dict[str, Callable[[], object]] = {RUNTIME: direct(), CODECS: direct(encoded=True)}
                    for name, message in messages.items():
                        rivals[name] = partial(asked, address, message, answers, in_flight)
                    for round_ in rivals.values():
                        round_()
                    each = {name: timing.per(answers) for name, timing in bench.compare(rivals).items()}
                    for name in messages:
                        title = f"generate_http/{work.name}/{mode}/{name}/{in_flight} in flight"
                        for rival in (RUNTIME, CODECS):
                            yield Figure.of(title, each[name], each[rival], rival, cpu=False)
    finally:
        runtime.close(0)


def _direct(
    runtime: Runtime, work: Work, mode: str, answers: int, in_flight: int, encoded: bool = False
) -> Callable[[], None]:
    """A round of so many answers, `in_flight` at a time. encoded: as the body of an answer too."""
    model = runtime.model(None, "generation")
    defaults = model.config.generation
    params = SamplingParams(
        temperature=dict.fromkeys(defaults.temperature, 0.0),
        top_p=dict(defaults.top_p),
        top_k=dict(defaults.top_k),
        guidance_scale=defaults.guidance_scale,
        seed=7,
        mode=mode,
        max_tokens=work.max_tokens,
    )
    answering = Answering("bench", model.config, model.codecs, params, False)
    threads = ThreadPoolExecutor(THREADS)

    def answer(future: Future[Generation]) -> object:
        return generation_body(answering, future.result()) if encoded else future.result()

    def round_() -> None:
        for _ in range(answers // in_flight):
            futures = [
                runtime.generate(model, [TextPart(work.prompts[mode])], params, deadline=None, request_id="bench")
                for _ in range(in_flight)
            ]
            list(threads.map(answer, futures))

    return round_
