"""What HTTP adds to a request: the running service on the loopback against its engine driven directly.

`small` is a model whose own cost is next to nothing, so that what the edge costs shows; `released` has the sizes that
Coupled Mamba's authors published. Both get a clip of MOSEI's widths (50 x 877 floats) as JSON and as safetensors;
their rival is the engine. A form of words and a recording goes to the bundled affect-small; its rival is the runtime,
which extracts the same features. Ours is the time a request, at 1 and at 16 requests in flight; 1 / that is requests
a second. Client and service share the machine's cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import orjson
import torch
from safetensors.numpy import save
from safetensors.torch import save_file

from benchmarks import peers
from benchmarks.figures import Bench, Figure
from benchmarks.works.edge import asked, request, served
from benchmarks.works.predict_engine import RELEASED, TOLERANCE, clips, lane_of, through_engine
from service.engine.engine import Engine
from service.engine.prediction import PredictOptions
from service.features.types import Clip, Media, TextSegment
from service.metrics import Metrics
from service.models.checkpoint import load_checkpoint
from service.models.convert import convert
from service.models.coupled_mamba_config import CoupledMambaConfig
from service.runtime import Runtime
from service.settings import BUNDLED, Settings

SMALL = replace(RELEASED, d_model=32, n_layers=1, d_state=8, dt_rank=2, d_input=32, d_head=32)
MODELS = {"small": SMALL, "released": RELEASED}
# Of a round. What it takes to connect must not show beside clips of some milliseconds.
CLIPS, FORMS = 160, 32
IN_FLIGHT = (1, 16)
WORDS = "I absolutely loved this film, every minute of it."
RECORDING = Path(__file__).parents[2] / "tests" / "media" / "digits.wav"


def run(bench: Bench) -> Iterator[Figure]:
    """Both models in both encodings, then the form; one after the other and sixteen at a time."""
    for name, config in MODELS.items():
        yield from _features(bench, name, config)
    yield from _form(bench)


def _features(bench: Bench, name: str, config: CoupledMambaConfig) -> Iterator[Figure]:
    clip = clips(config, 1)[0]
    document = orjson.dumps({"features": {modality: rows.tolist() for modality, rows in clip.values.items()}})
    encodings = {
        "json": request("/predict", "application/json", document),
        "safetensors": request("/predict", "application/vnd.safetensors", save(dict(clip.values))),
    }
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        save_file(peers.Released(config).state_dict(), f"{folder}/released.safetensors")
        convert("coupled-mamba-release", Path(folder, "released.safetensors"), Path(folder, "model"))
        engine = Engine([lane_of(load_checkpoint(Path(folder, "model")).model)], threads=1)
        engine.start()
        try:
            expected = float(np.clip(through_engine(engine, [clip])[0, 0], -3, 3))
            with served(Path(folder, "model")) as address:
                for in_flight in IN_FLIGHT:
                    rivals: dict[str, Callable[[], object]] = {"engine": _direct(engine, clip, in_flight)}
                    for encoding, message in encodings.items():
                        _check(f"{name}/{encoding}", asked(address, message, 1, 1), expected)
                        rivals[encoding] = partial(asked, address, message, CLIPS, in_flight)
                    peer = "the engine driven directly"
                    yield from _compare(bench, f"predict_http/{name}", in_flight, CLIPS, rivals, peer)
        finally:
            engine.stop()


def _form(bench: Bench) -> Iterator[Figure]:
    folder, sound = BUNDLED / "affect-small", RECORDING.read_bytes()
    head = '--cut\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    parts = [
        head.format("text", "").encode() + WORDS.encode(),
        head.format("audio", '; filename="a.wav"').encode() + sound,
        b"--cut--\r\n",
    ]
    message = request("/predict", "multipart/form-data; boundary=cut", b"\r\n".join(parts))
    runtime = Runtime.start(Settings(models=(folder,), threads=1), Metrics())
    try:
        model, media = runtime.model(None), Media((TextSegment(WORDS),), sound)

        def predict() -> float:
            future = runtime.submit(model, media, {}, PredictOptions(), deadline=None, request_id="bench")
            return future.result().sentiment

        expected = predict()
        with served(folder) as address:
            for in_flight in IN_FLIGHT:
                _check("form", asked(address, message, 1, 1), expected)
                rivals: dict[str, Callable[[], object]] = {
                    "engine": partial(_side_by_side, predict, FORMS, in_flight),
                    "multipart": partial(asked, address, message, FORMS, in_flight),
                }
                peer = "the runtime driven directly"
                yield from _compare(bench, "predict_http/affect-small", in_flight, FORMS, rivals, peer)
    finally:
        runtime.close(0)


def _compare(
    bench: Bench, work: str, in_flight: int, requests: int, rivals: dict[str, Callable[[], object]], peer: str
) -> Iterator[Figure]:
    for round_ in rivals.values():
        round_()
    each = {name: timing.per(requests) for name, timing in bench.compare(rivals).items()}
    for name in [name for name in rivals if name != "engine"]:
        yield Figure.of(f"{work}/{name}/{in_flight} in flight", each[name], each["engine"], peer, cpu=False)


def _check(work: str, answers: list[bytes], expected: float) -> None:
    for answer in answers:
        came = orjson.loads(answer)["sentiment"]
        if not abs(came - expected) <= TOLERANCE[torch.float32]:
            raise RuntimeError(f"predict_http/{work}: {came} came, a sentiment of {expected} was expected")


def _direct(engine: Engine, clip: Clip, in_flight: int) -> Callable[[], None]:
    """A round of CLIPS, `in_flight` at a time."""
    return partial(_side_by_side, lambda: through_engine(engine, [clip]), CLIPS, in_flight)


def _side_by_side(work: Callable[[], object], requests: int, count: int) -> None:
    def client() -> None:
        for _ in range(requests // count):
            work()

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(client) for _ in range(count)]:
            done.result()
