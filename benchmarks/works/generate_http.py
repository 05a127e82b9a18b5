"""What HTTP adds to generation: the running service on the loopback against its runtime driven directly.

The bundled digits-trio draws and speaks, without shared beginnings; whole and as events, to 1 and to 16 at a time. Ours
is the time an answer. Encoding its pictures and sounds is the edge's work: the rival stops at the ids. Client and
service share the machine's cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import orjson

from benchmarks.figures import Bench, Figure
from benchmarks.works.edge import asked, request, served
from service.codecs.prompt import TextPart
from service.engine.params import SamplingParams
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import BUNDLED, Settings

FOLDER = BUNDLED / "digits-trio"
MODES = {"image-only": "draw three", "interleaved": "draw three and say it"}
MAX_TOKENS = 128
ANSWERS = 16  # a round
IN_FLIGHT = (1, 16)


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
                    rivals: dict[str, Callable[[], object]] = {"runtime": _direct(runtime, mode, prompt, in_flight)}
                    for name, message in messages.items():
                        rivals[name] = partial(asked, address, message, ANSWERS, in_flight)
                    for round_ in rivals.values():
                        round_()
                    each = {name: timing.per(ANSWERS) for name, timing in bench.compare(rivals).items()}
                    for name in messages:
                        work = f"generate_http/{mode}/{name}/{in_flight} in flight"
                        yield Figure.of(work, each[name], each["runtime"], "the runtime driven directly", cpu=False)
    finally:
        runtime.close(0)


def _direct(runtime: Runtime, mode: str, prompt: str, in_flight: int) -> Callable[[], None]:
    """A round of ANSWERS, `in_flight` at a time."""
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

    def round_() -> None:
        for _ in range(ANSWERS // in_flight):
            futures = [
                runtime.generate(model, [TextPart(prompt)], params, deadline=None, request_id="bench")
                for _ in range(in_flight)
            ]
            for future in futures:
                future.result()

    return round_
