"""What traces cost: the same requests of a service that makes none, of one that records all and of one that samples.

A clip of MOSEI's widths, as safetensors, to the bundled affect-small, and words of digits-trio, over HTTP, one at a
time and sixteen. Spans go to a receiver in this process that throws them away; all share the machine's cores. Ours is
the time a request with traces on, the rival's that without.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import orjson
from safetensors.numpy import save

from benchmarks.figures import Bench, Figure
from benchmarks.works.edge import asked, request, served
from service.models.checkpoint import load_checkpoint
from service.settings import BUNDLED

SAMPLERS = {"all": "parentbased_always_on", "one in twenty": "parentbased_traceidratio"}
REQUESTS = 32  # a round
IN_FLIGHT = (1, 16)


def run(bench: Bench) -> Iterator[Figure]:
    """Clips, then words."""
    clip = {name: np.ones((50, dim), np.float32) for name, dim in _widths().items()}
    prompt = {"prompt": "three plus four is", "mode": "text-only", "max_tokens": 32, "seed": 7, "temperature": 0}
    messages = {
        "affect-small": request("/predict", "application/vnd.safetensors", save(clip)),
        "digits-trio": request("/generate", "application/json", orjson.dumps(prompt)),
    }
    for name, message in messages.items():
        with ExitStack() as stack:
            endpoint = stack.enter_context(_receiver())
            asking = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TRACES_SAMPLER_ARG": "0.05"}
            environments = {kind: {**asking, "OTEL_TRACES_SAMPLER": sampler} for kind, sampler in SAMPLERS.items()}
            addresses = {
                kind: stack.enter_context(served(BUNDLED / name, environment=environment))
                for kind, environment in {"off": {}, **environments}.items()
            }
            for in_flight in IN_FLIGHT:
                rivals = {
                    kind: partial(asked, address, message, REQUESTS, in_flight) for kind, address in addresses.items()
                }
                for round_ in rivals.values():
                    round_()
                each = {kind: timing.per(REQUESTS) for kind, timing in bench.compare(rivals).items()}
                for kind in SAMPLERS:
                    work = f"tracing/{name}/{kind}/{in_flight} in flight"
                    yield Figure.of(work, each[kind], each["off"], "without traces", cpu=False)


def _widths() -> dict[str, int]:
    return dict(load_checkpoint(BUNDLED / "affect-small").config.model.modalities)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def _receiver() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
