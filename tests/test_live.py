"""A live session below its socket: room that is waited for, steps by themselves, a state of fixed size."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.engine.admission import Load
from service.engine.clip_program import Result
from service.engine.live_reading import SegmentEnd
from service.engine.prediction import PredictOptions
from service.errors import Internal, InvalidInput, Overloaded
from service.features.incremental import Frame
from service.features.types import Clip, Steps
from service.live import LiveOptions, LiveSession
from service.runtime import Runtime
from tests.checkpoints import CLOCK_HZ, WIDTHS, build_checkpoint
from tests.runtimes import StartRuntime, gate_model, submit

OPTIONS = LiveOptions(lag_s=0.0, timeline_hz=None, half_life_s=1.0)


def live(runtime: Runtime) -> LiveSession:
    return LiveSession(runtime, runtime.model(None), OPTIONS, "test")


def frame(k: int) -> Frame:
    rows = np.random.default_rng(k).standard_normal((1, WIDTHS["audio"])).astype(np.float32)
    return Frame(k / CLOCK_HZ, {"audio": Steps(rows)})


def test_where_there_is_no_room_a_stream_waits(start_runtime: StartRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = start_runtime()
    advance, refused = runtime.advance, []

    def full(*args: Any, **more: Any) -> Any:
        if len(refused) < 3:
            refused.append(1)
            raise Overloaded("full")
        return advance(*args, **more)

    monkeypatch.setattr(runtime, "advance", full)

    async def talk() -> int:
        session = live(runtime)
        for k in range(3):
            await session.take(frame(k))
        return (await session.end())[1].steps

    assert asyncio.run(talk()) == 3
    assert len(refused) == 3


def test_where_there_is_no_room_for_long_the_stream_is_told(
    start_runtime: StartRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = start_runtime(slots=1, max_waiting=0)
    monkeypatch.setattr("service.live.ROOM_S", 0.1)
    taken = runtime.admission.enter(Load(sequences=1))

    async def talk() -> None:
        session = live(runtime)
        await session.take(frame(0))
        await session.take(frame(1))

    with pytest.raises(Overloaded):
        asyncio.run(talk())
    taken.leave()


def test_a_state_that_is_not_finite_is_not_taken_for_the_beginning(
    start_runtime: StartRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = start_runtime()
    runner = runtime.model(None).lane.runner

    async def talk() -> None:
        session = live(runtime)
        await session.take(frame(0))
        await session.take(frame(1))
        before = session.state
        monkeypatch.setattr(runner, "_capture", lambda *_: None)
        with pytest.raises(Internal):
            await session.take(frame(2))
        assert session.state is before

    asyncio.run(talk())


def test_steps_by_themselves_are_told_to_those_who_ask(start_runtime: StartRuntime) -> None:
    runtime = start_runtime()
    rng, clips = np.random.default_rng(0), []
    for n in (5, 6):
        present = np.ones((3, n), bool)
        values = {name: rng.standard_normal((n, width)).astype(np.float32) for name, width in WIDTHS.items()}
        clips.append(Clip(values, present, np.arange(n) / CLOCK_HZ))

    def run(index: int, alone: bool) -> Any:
        model = runtime.model(None)
        return runtime.advance(model, clips[index], read_all=True, alone=alone, deadline=None, request_id="test")

    lone: list[Result] = [run(0, True).result(60), run(1, False).result(60)]
    gate = gate_model(runtime)
    first = run(0, False)
    gate.wait_reached()
    together = [run(0, True), run(1, False)]
    gate.open()
    first.result(60)
    for one, other in zip(lone, together, strict=True):
        np.testing.assert_allclose(other.result(60).outputs, one.outputs, atol=1e-5)
    assert [result.outputs.shape for result in lone] == [(5, 24), (6, 12)]
    assert not np.allclose(lone[0].outputs[1:, :12], lone[0].outputs[1:, 12:])


def test_a_segment_of_an_ensemble_pools_anew_in_every_member(start_runtime: StartRuntime, tmp_path: Path) -> None:
    folders = [build_checkpoint(tmp_path / f"{seed}", name=f"{seed}", seed=seed) for seed in (0, 1)]
    together = build_checkpoint(tmp_path / "both", name="both", members=2)

    async def talk(runtime: Runtime) -> list[SegmentEnd]:
        session = live(runtime)
        await session.take(frame(0))
        _, first = await session.end_segment(None)
        await session.take(frame(1))
        return [first, (await session.end())[1]]

    one, other, both = (asyncio.run(talk(start_runtime(folder))) for folder in (*folders, together))
    for alone, beside, ends in zip(one, other, both, strict=True):
        assert alone.reading is not None
        assert beside.reading is not None
        assert ends.reading is not None
        assert ends.reading.sentiment == pytest.approx(
            (alone.reading.sentiment + beside.reading.sentiment) / 2, abs=1e-5
        )
        assert abs(alone.reading.sentiment - beside.reading.sentiment) > 1e-2


def test_what_a_session_is_as_bytes_does_not_grow(start_runtime: StartRuntime) -> None:
    runtime, sizes = start_runtime(), []

    async def talk() -> None:
        session = live(runtime)
        for k in range(400):
            await session.take(frame(k))
            if k in (100, 399):
                sizes.append(len(runtime.model(None).snapshots.dump(session.snapshot())))

    asyncio.run(talk())
    assert abs(sizes[1] - sizes[0]) < 64  # digits of its counters


def test_an_aligned_model_that_needs_all_modalities(start_runtime: StartRuntime, tmp_path: Path) -> None:
    runtime = start_runtime(build_checkpoint(tmp_path / "dense", coupling="layers", aligned=True))
    rng = np.random.default_rng(1)
    features = {name: Steps(rng.standard_normal((11, width)).astype(np.float32)) for name, width in WIDTHS.items()}
    whole = submit(runtime, features, PredictOptions()).result(60)

    async def talk() -> tuple[SegmentEnd, int]:
        session = live(runtime)
        measured = 0
        for part in (slice(0, 4), slice(4, 5), slice(5, 11)):
            given = {name: Steps(steps.values[part]) for name, steps in features.items()}
            measured += len(await session.take(Frame(features=given)))
            with pytest.raises(InvalidInput, match="every frame must bring text, audio, video"):
                await session.take(Frame(features={"audio": given["audio"]}))
            with pytest.raises(InvalidInput, match="aligned"):
                await session.take(Frame(1.0, given))
        return (await session.end())[1], measured

    ended, measured = asyncio.run(talk())
    assert ended.reading is not None
    assert ended.reading.sentiment == pytest.approx(whole.sentiment, abs=1e-5)
    assert (measured, ended.steps, ended.t) == (3, 11, 10.0)
