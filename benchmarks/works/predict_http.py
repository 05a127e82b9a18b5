"""What HTTP adds to a request: the running service on the loopback against its engine driven directly.

A clip of MOSEI's widths (50 x 877 floats) goes to a small model, so that what the edge costs shows beside what the
model costs. Ours is the time a request, at 1 and at 16 requests in flight; 1 / that is requests a second. Client and
service share the machine's cores.
"""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import torch
from safetensors.numpy import save
from safetensors.torch import save_file

from benchmarks import peers
from benchmarks.figures import Bench, Figure
from benchmarks.works.predict_engine import RELEASED, TOLERANCE, clips, lane_of, through_engine
from service.engine.engine import Engine
from service.features.types import Clip
from service.models.checkpoint import load_checkpoint
from service.models.convert import convert

SMALL = replace(RELEASED, d_model=32, n_layers=1, d_state=8, dt_rank=2, d_input=32, d_head=32)
REQUESTS = 32  # a round
IN_FLIGHT = (1, 16)


def run(bench: Bench) -> Iterator[Figure]:
    """JSON and safetensors, one after the other and sixteen at a time."""
    clip = clips(SMALL, 1)[0]
    encodings = {
        "json": ("application/json", orjson.dumps({"features": {m: v.tolist() for m, v in clip.values.items()}})),
        "safetensors": ("application/vnd.safetensors", save(dict(clip.values))),
    }
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        save_file(peers.Released(SMALL).state_dict(), f"{folder}/released.safetensors")
        convert("coupled-mamba-release", Path(folder, "released.safetensors"), Path(folder, "small"))
        engine = Engine([lane_of(load_checkpoint(Path(folder, "small")).model)], threads=1)
        engine.start()
        try:
            expected = float(through_engine(engine, [clip])[0, 0])
            with _service(Path(folder, "small")) as address:
                for name, (media_type, body) in encodings.items():
                    _check(address, name, media_type, body, expected)
                for in_flight in IN_FLIGHT:
                    runs: dict[str, Callable[[], object]] = {"engine": _direct(engine, clip, in_flight)}
                    runs |= {name: _over_http(address, *encoding, in_flight) for name, encoding in encodings.items()}
                    for round_ in runs.values():
                        round_()
                    timings = bench.compare(runs)
                    each = {name: timing.per(REQUESTS) for name, timing in timings.items()}
                    for name in encodings:
                        work = f"predict_http/{name}/{in_flight} in flight"
                        yield Figure.of(work, each[name], each["engine"], "the engine driven directly", cpu=False)
        finally:
            engine.stop()


@contextmanager
def _service(folder: Path) -> Iterator[tuple[str, int]]:
    """`serpentine serve` in a process of its own -> its host and port."""
    command = [sys.executable, "-m", "service", "serve", "--model", str(folder), "--port", "0", "--threads", "1"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SERPENTINE_")}
    with subprocess.Popen([*command, "--log-level", "error"], env=clean, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                if found := re.search(r"listens on http://([\d.]+):(\d+)", line):
                    yield found[1], int(found[2])
                    return
            raise RuntimeError(f"the service did not start: {''.join(lines)}")
        finally:
            process.terminate()


def _check(address: tuple[str, int], name: str, media_type: str, body: bytes, expected: float) -> None:
    with closing(http.client.HTTPConnection(*address)) as connection:
        status, answer = _post(connection, media_type, body)
    came = orjson.loads(answer)
    if status != 200 or not abs(came["sentiment"] - float(np.clip(expected, -3, 3))) <= TOLERANCE:
        raise RuntimeError(f"predict_http/{name}: {status} {came} came, a sentiment of {expected} was expected")


def _post(connection: http.client.HTTPConnection, media_type: str, body: bytes) -> tuple[int, bytes]:
    connection.request("POST", "/predict", body, {"Content-Type": media_type})
    answer = connection.getresponse()
    return answer.status, answer.read()


def _over_http(address: tuple[str, int], media_type: str, body: bytes, in_flight: int) -> Callable[[], None]:
    """A round of REQUESTS over `in_flight` connections, opened for the round and kept open through it."""

    def client() -> None:
        with closing(http.client.HTTPConnection(*address)) as connection:
            for _ in range(REQUESTS // in_flight):
                status, answer = _post(connection, media_type, body)
                if status != 200:
                    raise RuntimeError(f"predict_http: {status} {answer!r}")

    return lambda: _side_by_side(client, in_flight)


def _direct(engine: Engine, clip: Clip, in_flight: int) -> Callable[[], None]:
    """A round of REQUESTS, `in_flight` at a time."""

    def client() -> None:
        for _ in range(REQUESTS // in_flight):
            through_engine(engine, [clip])

    return lambda: _side_by_side(client, in_flight)


def _side_by_side(client: Callable[[], None], count: int) -> None:
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(client) for _ in range(count)]:
            done.result()
