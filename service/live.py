"""A live session of a sentiment model: frames in, readings out, and between two frames a state of fixed size.

Nothing holds a slot between frames: the steps of a frame are an ordinary request that goes on from a snapshot and
leaves one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from service.engine.live_reading import Measurement, Readings, SegmentEnd
from service.engine.request import NotFinite
from service.engine.snapshots import Snapshot
from service.errors import InvalidInput, Overloaded
from service.features.incremental import Frame, LiveFeatures
from service.features.incremental_state import dump, restore
from service.features.types import Clip
from service.owner import ANYONE, Owner
from service.predicting import check_complete
from service.runtime import Runtime
from service.served import ServedModel

T = TypeVar("T")

# How often a stream asks again where there is no room; it is not read meanwhile, so that its client waits too.
ROOM_POLL_S, ROOM_S = 0.05, 10.0


@dataclass(frozen=True)
class LiveOptions:
    """What a session asks for.

    lag_s        how late a step may come
    timeline_hz  measurements a second of the stream, at most; None: one for each frame that steps go out with
    half_life_s  of `recent`; in steps, where the clock is aligned
    """

    lag_s: float
    timeline_hz: float | None
    half_life_s: float


class LiveSession:
    """One session. Its methods are awaited one at a time; `close` when done.

    messages  of its client that it has taken in, on this socket and those before
    """

    def __init__(
        self,
        runtime: Runtime,
        model: ServedModel,
        options: LiveOptions,
        id: str,
        start: Snapshot | None = None,
        owner: Owner = ANYONE,
    ) -> None:
        """start: a state to go on from, of a stream or of anything else. Raises InvalidInput at ("snapshot",)."""
        self.runtime, self.model, self.options, self.id = runtime, model, options, id
        self.owner, self.messages = owner, 0
        self.dense = model.config.model.dense
        self.features = LiveFeatures(model.extractor, options.lag_s, complete=self.dense)
        self.readings = Readings(model.config, options.timeline_hz, options.half_life_s)
        self._snapshot = start
        if start is not None and "stream" in start.notes:
            stream = start.notes["stream"]
            if not isinstance(stream, Mapping) or stream.keys() != {"features", "messages", "readings"}:
                raise InvalidInput.at(("snapshot",), "what a stream left beside its state is broken")
            try:
                restore(self.features, start.aside, stream["features"])
                self.readings.restore(stream["readings"])
                self.messages = _count(stream["messages"])
            except BaseException:
                self.close()
                raise

    async def take(self, frame: Frame) -> list[Measurement]:
        """Read a frame -> the measurements that it brought. Raises ServiceError; the session can go on then.

        What is wrong with a frame shows before any of it is taken. Where there is no room, this waits for it.
        """
        return await self._run(await self._extract(lambda: self.features.feed(frame)))

    async def end_segment(self, t: float | None) -> tuple[list[Measurement], SegmentEnd]:
        """End a segment at `t`, or after all that came: pooling starts anew, the state goes on."""
        measured = await self._run(await self._extract(lambda: self.features.settle(t)))
        ended = self.readings.end_segment(self.features.late)
        if self._snapshot is not None:
            self._snapshot = self.model.snapshots.renewed(self._snapshot, "pool_")
        return measured, ended

    async def end(self) -> tuple[list[Measurement], SegmentEnd]:
        """End the session with all that is left of it."""
        measured = await self._run(await self._extract(self.features.finish))
        return measured, self.readings.end_segment(self.features.late)

    @property
    def state(self) -> Snapshot:
        """The state after the steps that went out, without what waits."""
        return self._snapshot or self.model.snapshots.initial()

    def snapshot(self) -> Snapshot:
        """The whole session, as another replica can go on from it."""
        aside, notes = dump(self.features)
        stream = {"features": notes, "messages": self.messages, "readings": self.readings.dump()}
        return self.state.beside(aside, {"stream": stream})

    def close(self) -> None:
        """Let go of what extraction holds. Once is enough."""
        self.features.close()

    async def _extract(self, function: Callable[[], Clip | None]) -> Clip | None:
        begun = time.monotonic()
        clip = await self._with_room(lambda: self.runtime.workers.submit(function))
        ended, tracing = time.monotonic(), self.runtime.tracing
        self.runtime.metrics.feature_duration_seconds.labels(self.model.name).observe(ended - begun)
        tracing.record(tracing.current(), "features", begun, ended)
        return clip

    async def _run(self, clip: Clip | None) -> list[Measurement]:
        if clip is None:
            return []
        if self.dense:
            check_complete(clip, list(self.model.config.model.modalities))
        result = await self._with_room(
            lambda: self.runtime.advance(
                self.model,
                clip,
                restore=self._snapshot,
                read_all=True,
                alone=True,
                deadline=None,
                request_id=self.id,
                owner=self.owner,
            )
        )
        if result.snapshot is None:  # to begin again from nothing would go unnoticed
            raise NotFinite
        self._snapshot = result.snapshot
        return self.readings.take(clip, result.outputs)

    async def _with_room(self, submit: Callable[[], Future[T]]) -> T:
        """The result of what `submit` starts, asked again while it is refused for lack of room, for a while."""
        limit = time.monotonic() + ROOM_S
        while True:
            try:
                return await asyncio.wrap_future(submit())
            except Overloaded:
                if time.monotonic() >= limit:
                    raise
                await asyncio.sleep(ROOM_POLL_S)


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise InvalidInput.at(("snapshot",), "what a stream left beside its state is broken")
    return value
