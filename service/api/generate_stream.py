"""A generation as events while it runs.

    engine thread: listener, assemble -> deque -> event loop: (threads: encode media) -> chunks of events

The event loop is woken where there is something to tell, and not for each of the hundred codes of a clip. What waits in
the deque is no more than the tokens make: a reader who is slow holds up neither the engine nor anybody else, and
pictures are made when the reader has taken what was before them, of all the rows that have come by then.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import torch

from service.api.context import Edge
from service.api.generate_answer import Answering, as_base64, image_body, metadata, part_body, part_type
from service.api.problems import count, problem, unexpected
from service.api.sse import KEEP_ALIVE, event
from service.codecs.assembly import CodesContent, Event, PartCompleted, PartStarted, RowArrived, TextGrown
from service.engine.generation import ChoiceEnded, Generation, Listener, TokenDrawn
from service.errors import DeadlineExceeded, ServiceError

log = logging.getLogger(__name__)


class GenerationStream:
    """The events of one generation. Belongs to the event loop that makes it; only `_listen` runs elsewhere, and has the
    assemblers to itself.
    """

    def __init__(self, edge: Edge, answering: Answering, deadline: float) -> None:
        self.edge, self.answering, self.deadline = edge, answering, deadline
        self._assemblers = [answering.assembler() for _ in range(answering.params.n)]
        self._came: deque[tuple[int, Event]] = deque()  # of which choice, and what
        self._begun = False  # a token was drawn
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        self._woken = False
        self._whole: dict[int, tuple[tuple[int, ...], str]] = {}  # by choice, a picture all of whose rows were told
        self._sequence = 0
        self._future: Future[Generation] = Future()

    async def begin(self, submit: Callable[[Listener], Future[Generation]]) -> None:
        """Start, and wait for the first token. Raises what the work fails with before it: there is no event yet.

        Cancelled, it cancels the work.
        """
        self._future = submit(self._listen)
        self._future.add_done_callback(lambda _: self._wake_up())
        try:
            while not self._begun and not self._future.done():
                await self._news(math.inf)
            if not self._begun:
                self._future.result()
        except BaseException:
            self._future.cancel()
            raise

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The events, to be sent one chunk after the other. Closed before its end, it cancels the work."""
        try:
            yield self._event("response.created", response=self._names())
            try:
                async for chunk in self._parts():
                    yield chunk
                yield self._ended(self._future.result())
            except Exception as error:
                yield self._failed(error)
        finally:
            self._future.cancel()

    def _listen(self, told: TokenDrawn | ChoiceEnded) -> None:
        assembler = self._assemblers[told.choice]
        if isinstance(told, TokenDrawn):
            events = assembler.feed(told.token)
        else:
            events = assembler.finish(told.text_bytes_dropped)
        self._came.extend((told.choice, part) for part in events)
        news, self._begun = bool(events) or not self._begun, True
        if news and not self._woken:  # the loop is asleep, or is about to look
            self._woken = True
            self._wake_up()

    def _wake_up(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._wake.set)

    async def _news(self, patience_s: float) -> bool:
        """Wait for news -> whether there were any within this time. Raises DeadlineExceeded."""
        try:
            async with asyncio.timeout(min(patience_s, self.deadline - time.monotonic())):
                await self._wake.wait()
        except TimeoutError:
            if time.monotonic() >= self.deadline:
                raise DeadlineExceeded("the deadline passed before the answer was complete") from None
            return False
        self._wake.clear()
        self._woken = False
        return True

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        """All of the parts' events, those that came together as one chunk, and comments while there are none."""
        keep_alive_s = self.edge.runtime.settings.keep_alive_s
        ready: list[bytes] = []
        while True:
            done = self._future.done()  # before the deque is emptied: what it told before its end is in there
            for choice, part in self._take():
                if ready and not isinstance(part, PartStarted | TextGrown):  # it is encoded when those are taken
                    yield b"".join(ready)
                    ready.clear()
                ready.append(await self._part(choice, part))
            if ready:
                yield b"".join(ready)
                ready.clear()
            if done:
                return
            if not await self._news(keep_alive_s):
                yield KEEP_ALIVE

    def _take(self) -> list[tuple[int, Event]]:
        """What came, less the rows of a picture of which more came: a delta has all of its rows."""
        came = [self._came.popleft() for _ in range(len(self._came))]
        latest = {(choice, part.index): part for choice, part in came if isinstance(part, RowArrived)}
        return [
            (choice, part)
            for choice, part in came
            if not isinstance(part, RowArrived) or latest[choice, part.index] is part
        ]

    async def _part(self, choice: int, told: Event) -> bytes:
        codecs = self.answering.codecs
        fields: dict[str, Any] = {"choice_index": choice, "index": told.index}
        if isinstance(told, PartStarted):
            return self._event("part.started", **fields, part_type=part_type(told.modality, codecs))
        if isinstance(told, TextGrown):
            return self._event("part.delta", **fields, text=told.text)
        if isinstance(told, RowArrived):
            picture = await self.edge.apart(self._rows, told.codes)
            self._whole[choice] = (told.codes, picture)
            return self._event("part.delta", **fields, image_png=picture)
        return await self._completed(choice, told, fields)

    async def _completed(self, choice: int, told: PartCompleted, fields: dict[str, Any]) -> bytes:
        codecs, content = self.answering.codecs, told.content
        codes, picture = self._whole.pop(choice, (None, ""))
        if not isinstance(content, CodesContent):
            return self._event("part.completed", **fields, part=part_body(content, codecs))
        if content.codes == codes:  # its last row made it whole
            return self._event("part.completed", **fields, part=image_body(picture))
        part = await self.edge.apart(part_body, content, codecs)
        delta = b""
        if part["type"] == "audio":
            delta = self._event("part.delta", **fields, audio_wav=part["data"])
        return delta + self._event("part.completed", **fields, part=part)

    def _rows(self, codes: tuple[int, ...]) -> str:
        """The picture of the rows that have come."""
        image = self.answering.codecs.image
        assert image is not None  # rows are told only of it
        return as_base64(image.png(torch.tensor(codes), len(codes) // image.config.grid[1]))

    def _ended(self, generation: Generation) -> bytes:
        cut = any(choice.finish_reason == "length" for choice in generation.choices)
        name = "response.incomplete" if cut else "response.completed"
        return self._event(name, response=metadata(self.answering, generation))

    def _failed(self, error: Exception) -> bytes:
        if not isinstance(error, ServiceError):
            log.exception("unexpected error", exc_info=error)
            error = unexpected()
        count(self.edge.runtime.metrics, error)
        response = {**self._names(), "error": problem(error, self.answering.id)}
        return self._event("response.failed", response=response)

    def _names(self) -> dict[str, Any]:
        return {
            "id": self.answering.id,
            "model": self.answering.config.name,
            "seed": self.answering.params.seed,
        }

    def _event(self, name: str, **fields: Any) -> bytes:
        data = {"type": name, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event(name, data)
