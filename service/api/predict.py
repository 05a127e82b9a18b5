"""POST /predict and /predict/batch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import orjson
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.api.bodies import media_type, read_body
from service.api.context import Caller, Edge, no_query
from service.api.openapi import FORM, JSON, JSON_LINES, SAFETENSORS, batch_docs, predict_docs
from service.api.predict_request import PredictRequest, from_form, from_json, from_safetensors
from service.api.problems import count, problem, unexpected
from service.api.schemas import prediction_body
from service.api.waiting import deadline_of, header_deadline_ms, last_moment, result, unless_gone, until
from service.engine.prediction import Prediction, PredictOptions
from service.errors import DeadlineExceeded, InvalidInput, ServiceError, TooLarge
from service.logs import request_id
from service.owner import Owner
from service.served import ServedModel
from service.sessions.session import Session

log = logging.getLogger(__name__)

POINT_BYTES = 64  # of a timeline in JSON, about
COPIED = 16  # bytes that are copied while one of JSON is parsed: a thread costs more than reading most of safetensors


def predict_router(edge: Edge) -> APIRouter:
    """The routes of sentiment of whole clips."""
    router = APIRouter(dependencies=[Depends(no_query)], tags=["sentiment"])
    model = edge.first(ServedModel)

    @router.post("/predict", **predict_docs(model))
    async def predict(request: Request) -> Response:
        """Sentiment of one clip of text, audio and video: any subset of them, as raw media or as features."""
        edge.gate.admit()
        caller = Caller.of(request)
        settings = edge.runtime.settings
        budget_ms = header_deadline_ms(request, settings)
        call = await until(last_moment(caller.arrived, budget_ms, settings), read_clip(edge, request))
        deadline = deadline_of(caller.arrived, budget_ms, call.options.deadline_ms, settings)
        answer = await unless_gone(request, answer_clip(edge, call, deadline, caller.id, caller.owner))
        return Response(answer, media_type=JSON)

    @router.post("/predict/batch", **batch_docs(model))
    async def predict_batch(request: Request) -> Response:
        """Sentiment of many clips: JSON Lines in, JSON Lines out in the same order, a result or a problem a line.

        A line is what `/predict` reads as JSON, and is answered under the id `<request id>.<line number>`. The header
        X-Deadline-Ms bounds the whole batch from its arrival; a line's `deadline_ms` runs from when its turn comes.
        """
        edge.gate.admit()
        caller = Caller.of(request)
        settings = edge.runtime.settings
        budget_ms = header_deadline_ms(request, settings)
        kind = media_type(request, *JSON_LINES)
        end = last_moment(caller.arrived, budget_ms, settings)
        body = await until(end, read_body(request, settings.max_body_bytes))
        lines = await edge.offload(len(body), _split, body, settings.max_batch_lines)
        batch = _Batch(edge, caller, end if budget_ms else None)
        return StreamingResponse(batch.answers(lines), media_type=kind)

    return router


async def read_clip(edge: Edge, request: Request) -> PredictRequest:
    """The clip in any of the three encodings. Raises what a body can be refused with."""
    settings = edge.runtime.settings
    kind = media_type(request, JSON, FORM, SAFETENSORS)
    body = await read_body(request, settings.max_body_bytes)
    if kind == FORM:
        return await edge.offload(len(body), from_form, body, request.headers["content-type"])
    if kind == JSON:
        return await edge.offload(len(body), from_json, body)
    return await edge.offload(len(body) // COPIED, from_safetensors, body)


async def answer_clip(
    edge: Edge, call: PredictRequest, deadline: float, call_id: str, owner: Owner, session: Session | None = None
) -> bytes:
    """Submit and wait -> the JSON of the prediction. Where the waiting ends early, the engine's work is cancelled.

    With a session the clip goes on from it, by its model.
    """
    if time.monotonic() >= deadline:
        raise DeadlineExceeded("the deadline passed while the request was read")
    model = edge.runtime.model(call.options.model if session is None else session.model)
    options = PredictOptions(timeline=call.options.timeline, attribution=call.options.attribution)
    future = edge.runtime.submit(
        model,
        call.media,
        call.features,
        options,
        deadline=deadline,
        request_id=call_id,
        session_id=None if session is None else session.id,
        owner=owner,
    )
    prediction = await until(deadline, result(future))
    return await edge.offload(POINT_BYTES * len(prediction.timeline or ()), _json, prediction, call_id)


def _json(prediction: Prediction, call_id: str) -> bytes:
    return orjson.dumps(prediction_body(prediction, call_id))


def _split(body: bytes, max_lines: int) -> list[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1."""
    if body.count(b"\n") > 2 * max_lines:  # cheaply, before a list of them is made
        raise TooLarge(f"more than {max_lines} lines")
    lines = [(number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip()]
    if not lines:
        raise InvalidInput("no lines came; each line is a JSON object as POST /predict reads it")
    if len(lines) > max_lines:
        raise TooLarge(f"{len(lines)} lines came, at most {max_lines} are read; send several batches")
    return lines


@dataclass(frozen=True)
class _Batch:
    """`end` is the second by which the whole batch must be answered, if any."""

    edge: Edge
    caller: Caller
    end: float | None

    async def answers(self, lines: list[tuple[int, bytes]]) -> AsyncGenerator[bytes, None]:
        """Lines of answers in order, with a bounded window of lines at work."""
        window: deque[asyncio.Task[bytes]] = deque()
        try:
            for number, line in lines:
                window.append(asyncio.create_task(self._line(number, line)))
                if len(window) >= self.edge.runtime.settings.batch_concurrency:
                    yield await window.popleft()
            while window:
                yield await window.popleft()
        finally:
            for task in window:
                task.cancel()

    async def _line(self, number: int, line: bytes) -> bytes:
        call_id = f"{self.caller.id}.{number}"
        request_id.set(call_id)
        start = time.monotonic()
        try:
            call = await self.edge.offload(len(line), from_json, line)
            deadline = deadline_of(start, None, call.options.deadline_ms, self.edge.runtime.settings)
            deadline = min(deadline, self.end or deadline)
            answer = await answer_clip(self.edge, call, deadline, call_id, self.caller.owner)
        except Exception as error:
            if not isinstance(error, ServiceError):
                log.exception("unexpected error")
                error = unexpected()
            count(self.edge.runtime.metrics, error)
            answer = orjson.dumps(problem(error, call_id))
        return answer + b"\n"
