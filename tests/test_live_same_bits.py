"""A stream's readings have the bits of the whole clip's: any frames, in company, out of snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.engine.live_reading import SegmentEnd
from service.engine.prediction import PredictOptions
from service.features.incremental import Frame
from service.features.types import Steps
from service.kernels.backends import missing
from service.live import LiveOptions, LiveSession
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.checkpoints import CLOCK_HZ, PARTS, WIDTHS, build_checkpoint
from tests.runtimes import random_features, submit

pytestmark = pytest.mark.skipif(missing("cpu") is not None, reason=missing("cpu") or "")

OPTIONS = LiveOptions(lag_s=0.0, timeline_hz=None, half_life_s=1.0)


@pytest.fixture(scope="module", params=[{}, {"members": 2}, {"hears": PARTS}], ids=["one", "two members", "of parts"])
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Runtime, None, None]:
    folder = build_checkpoint(tmp_path_factory.mktemp("checkpoints") / "some", **request.param)
    limits = {"slots": 4, "chunk_steps": 3, "step_budget": 11, "threads": 1}
    runtime = Runtime.start(Settings(models=(folder,), backend="cpu", **limits), Metrics())
    yield runtime
    runtime.close(0)


def said(end: SegmentEnd) -> dict[str, Any]:
    assert end.reading is not None
    return {name: getattr(end.reading, name) for name in ("sentiment", "confidence", "probabilities", "emotions")}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    moved=st.sets(st.integers(0, 8)),
    names=st.sets(st.sampled_from(sorted(WIDTHS)), min_size=1),
)
def test_any_frames_give_the_bits_of_the_whole(
    runtime: Runtime, seed: int, cuts: list[int], moved: set[int], names: set[str]
) -> None:
    """After the frames `moved` the session goes on elsewhere: from its snapshot as bytes, the old one closed."""
    rng, model = np.random.default_rng(seed), runtime.model(None)
    rows = {n: rng.standard_normal((sum(cuts), w)).astype(np.float32) for n, w in WIDTHS.items() if n in names}
    company = [submit(runtime, random_features(rng), PredictOptions()) for _ in range(3)]
    whole = submit(runtime, {name: Steps(values) for name, values in rows.items()}, PredictOptions()).result(60)

    async def talk() -> SegmentEnd:
        session, start = LiveSession(runtime, model, OPTIONS, "test"), 0
        for index, steps in enumerate(cuts):
            frame = {name: Steps(values[start : start + steps]) for name, values in rows.items()}
            await session.take(Frame(start / CLOCK_HZ, frame))
            start += steps
            if index in moved:
                data = model.snapshots.dump(session.snapshot())
                session.close()
                session = LiveSession(runtime, model, OPTIONS, "test", model.snapshots.load(data))
        _, end = await session.end()
        session.close()
        return end

    end = asyncio.run(talk())
    assert said(end) == {name: getattr(whole, name) for name in said(end)}
    assert (end.steps, end.late) == (sum(cuts), {})
    assert whole.deterministic
    for future in company:
        future.result(60)
