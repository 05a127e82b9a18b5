"""What HTTP adds to generation: the running service on the loopback against its runtime driven directly.

The bundled digits-trio draws and speaks, without shared beginnings; whole and as events, to 1 and to 16 at a time. Ours
is the time an answer. One rival stops at the ids; the other makes pictures and sounds of them too, on the edge's number
of threads, so that what is left between it and ours is HTTP. Client and service share the machine's cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import orjson

from benchmarks.figures import Bench, Figure
from benchmarks.works.edge import asked, request, served
from service.api.generate_answer import Answering, generation_body
from service.codecs.prompt import TextPart
from service.engine.generation import Generation
from service.engine.params import SamplingParams
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import BUNDLED, Settings

FOLDER = BUNDLED / "digits-trio"
MODES = {"image-only": "draw three", "interleaved": "draw three and say it"}
MAX_TOKENS = 128
ANSWERS = 16  # a round
IN_FLIGHT = (1, 16)
THREADS = 4  # of the edge
RUNTIME, CODECS = "the runtime driven directly", "the runtime and the codecs"


def run(bench: Bench) -> Iterator[Figure]:
    """A picture, and a picture with its word spoken."""
    runtime = Runtime.start(Settings(models=(FOLDER,), threads=1, prefix_cache_bytes=0), Metrics())
    try:
        with served(FOLDER, prefix_cache_bytes="0") as address:
            for mode, prompt in MODES.items():
                fields = {"prompt": prompt, "mode": mode, "max_tokens": MAX_TOKENS, "seed": 7, "temperature": 0}
                messages = {
                    name: request("/generate", "application/json", orjson.dumps({**fields, **more}))
                    for name, more in (("whole", {}), ("events", {"stream": True}))
                }
                for in_flight in IN_FLIGHT:
                    rivals: dict[str, Callable[[], object]] = {
                        RUNTIME: _direct(runtime, mode, prompt, in_flight),
                        CODECS: _direct(runtime, mode, prompt, in_flight, encoded=True),
                    }
                    for name, message in messages.items():
                        rivals[name] = partial(asked, address, message, ANSWERS, in_flight)
                    for round_ in rivals.values():
                        round_()
                    each = {name: timing.per(ANSWERS) for name, timing in bench.compare(rivals).items()}
                    for name in messages:
                        work = f"generate_http/{mode}/{name}/{in_flight} in flight"
                        for rival in (RUNTIME, CODECS):
                            yield Figure.of(work, each[name], each[rival], rival, cpu=False)
    finally:
        runtime.close(0)


def _direct(runtime: Runtime, mode: str, prompt: str, in_flight: int, encoded: bool = False) -> Callable[[], None]:
    """A round of ANSWERS, `in_flight` at a time. encoded: as the body of an answer too."""
    model = runtime.model(None, "generation")
    defaults = model.config.generation
    params = SamplingParams(
        temperature=dict.fromkeys(defaults.temperature, 0.0),
        top_p=dict(defaults.top_p),
        top_k=dict(defaults.top_k),
        guidance_scale=defaults.guidance_scale,
        seed=7,
        mode=mode,
        max_tokens=MAX_TOKENS,
    )

    answering = Answering("bench", model.config, model.codecs, params, False)
    threads = ThreadPoolExecutor(THREADS)

    def answer(future: Future[Generation]) -> object:
        return generation_body(answering, future.result()) if encoded else future.result()

    def round_() -> None:
        for _ in range(ANSWERS // in_flight):
            futures = [
                runtime.generate(model, [TextPart(prompt)], params, deadline=None, request_id="bench")
                for _ in range(in_flight)
            ]
            list(threads.map(answer, futures))

    return round_
