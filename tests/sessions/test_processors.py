"""States that come from a processor with another instruction set: they are gone on with, and the answers say so."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.codecs.prompt import TextPart
from service.engine.prediction import PredictOptions
from service.engine.snapshots import Snapshot
from service.features.types import Steps
from service.kernels.cpu import BEST
from service.runtime import Runtime
from tests.api.serving import serving
from tests.api.streaming import live_runtime, streaming
from tests.generators import params
from tests.runtimes import StartRuntime, submit
from tests.trio import build_trio

ELSEWHERE = frozenset({"elsewhere"})
WAYS = pytest.mark.parametrize(("came_through", "promised"), [(frozenset({BEST}), True), (ELSEWHERE, False)])


def from_elsewhere(
    runtime: Runtime, name: str, came_through: frozenset[str], state: Snapshot | None = None
) -> tuple[str, Snapshot]:
    """A session that goes on from a state that came through such processors, and the state."""
    format = runtime.models[name].snapshots
    state = format.load(format.dump(replace(state or format.initial(), instructions=came_through)))
    return runtime.sessions.create(name, state).id, state


@WAYS
def test_a_clip_says_so_and_so_does_the_next(
    start_runtime: StartRuntime, came_through: frozenset[str], promised: bool
) -> None:
    runtime = start_runtime(backend="cpu")
    id, _ = from_elsewhere(runtime, "tiny", came_through)
    features, options = {"audio": Steps(np.ones((20, 5), np.float32))}, PredictOptions()
    for _ in range(2):
        assert submit(runtime, features, options, session_id=id).result(60).deterministic is promised
    assert runtime.sessions.show(id).snapshot.instructions == came_through | {BEST}
    assert submit(runtime, features, options).result(60).deterministic


@WAYS
def test_a_fork_says_so_and_so_does_what_was_forked_of_it(
    tiny_checkpoint: Path, came_through: frozenset[str], promised: bool
) -> None:
    runtime = live_runtime(tiny_checkpoint, backend="cpu")
    with serving(runtime) as url:
        id, _ = from_elsewhere(runtime, "tiny", came_through)
        for _ in range(2):
            id = httpx.post(f"{url}/sessions", json={"fork_of": id}).raise_for_status().json()["id"]
            assert runtime.sessions.show(id).snapshot.instructions == came_through
        body = {"features": {"audio": np.ones((3, 5)).tolist()}}
        read = httpx.post(f"{url}/sessions/{id}/steps", json=body, timeout=60).raise_for_status().json()
        assert read["deterministic"] is promised


@WAYS
def test_a_generation_says_so(
    start_runtime: StartRuntime, tmp_path: Path, came_through: frozenset[str], promised: bool
) -> None:
    runtime = start_runtime(build_trio(tmp_path / "trio"), backend="cpu")
    model = runtime.model(None, "generation")

    def answered(**way: Any) -> bool:
        asked, prompt = params(model.vocabulary, max_tokens=4), [TextPart("draw")]
        return runtime.generate(model, prompt, asked, deadline=None, request_id="x", **way).result(60).deterministic

    first = runtime.sessions.create("trio", model.snapshots.initial()).id
    assert answered(session_id=first)
    id, state = from_elsewhere(runtime, "trio", came_through, runtime.sessions.show(first).snapshot)
    assert [answered(session_id=id), answered(snapshot=state), answered()] == [promised, promised, True]


def test_a_stream_says_so_at_its_start(tiny_checkpoint: Path) -> None:
    runtime = live_runtime(tiny_checkpoint, backend="cpu")
    with serving(runtime) as url:
        for came_through, promised in ((frozenset({BEST}), True), (ELSEWHERE, False)):
            _, state = from_elsewhere(runtime, "tiny", came_through)
            snapshot = b64encode(runtime.model(None).snapshots.dump(state)).decode()
            with streaming(url) as stream:
                assert stream.start(snapshot=snapshot)["deterministic"] is promised
                stream.end()
