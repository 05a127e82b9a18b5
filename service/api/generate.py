"""POST /generate: whole or as events."""

from __future__ import annotations

import time
from concurrent.futures import Future

import orjson
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from service.api.bodies import media_type, read_body
from service.api.context import Caller, Edge, no_query
from service.api.generate_answer import Answering, generation_body
from service.api.generate_request import GenerateRequest, read_generate, sampling_of
from service.api.generate_stream import GenerationStream
from service.api.openapi import JSON, generate_docs
from service.api.origin import Origin, origin_of
from service.api.sse import EventStream
from service.api.waiting import deadline_of, header_deadline_ms, last_moment, result, unless_gone, until
from service.engine.generation import Generation, Listener
from service.errors import DeadlineExceeded
from service.served import GenerativeModel


def generate_router(edge: Edge) -> APIRouter:
    """The route of generation."""
    router = APIRouter(dependencies=[Depends(no_query)], tags=["generation"])

    @router.post("/generate", **generate_docs(edge.first(GenerativeModel)))
    async def generate(request: Request) -> Response:
        """Go on from a prompt of text, images and speech in any order, with text, images and speech in any order."""
        edge.gate.admit()
        caller, settings = Caller.of(request), edge.runtime.settings
        budget_ms = header_deadline_ms(request, settings)
        call = await until(last_moment(caller.arrived, budget_ms, settings), _read(edge, request))
        deadline = deadline_of(caller.arrived, budget_ms, call.body.deadline_ms, settings)
        origin = await until(deadline, origin_of(edge, call.body, caller))
        generating = _Generating(edge, call, origin, deadline, caller)
        if not call.body.stream:
            return Response(await unless_gone(request, generating.whole()), media_type=JSON)
        stream = GenerationStream(edge, generating.answering, deadline)
        await unless_gone(request, stream.begin(generating.submit))
        gave_up = edge.runtime.metrics.cancellations_total.labels("stream").inc
        return EventStream(stream.chunks(), settings.stream_send_s, gave_up)

    return router


async def _read(edge: Edge, request: Request) -> GenerateRequest:
    settings = edge.runtime.settings
    media_type(request, JSON)
    body = await read_body(request, settings.max_body_bytes)
    return await edge.offload(len(body), read_generate, body, settings.max_media_bytes)


class _Generating:
    """One request, checked against its model and not yet submitted."""

    def __init__(self, edge: Edge, call: GenerateRequest, origin: Origin, deadline: float, caller: Caller) -> None:
        """Raises InvalidInput."""
        self.edge, self.call, self.origin, self.deadline = edge, call, origin, deadline
        self.owner = caller.owner
        self.model = origin.model
        config = self.model.config
        params = sampling_of(call.body, config, edge.runtime.settings.max_tokens)
        self.answering = Answering(caller.id, config, self.model.codecs, params, call.body.tokens)

    def submit(self, listener: Listener | None = None) -> Future[Generation]:
        """Start. Raises what refuses work: Overloaded, Draining, EngineDown, DeadlineExceeded."""
        if time.monotonic() >= self.deadline:
            raise DeadlineExceeded("the deadline passed while the request was read")
        return self.edge.runtime.generate(
            self.model,
            self.call.parts,
            self.answering.params,
            deadline=self.deadline,
            request_id=self.answering.id,
            listener=listener,
            session_id=self.call.body.session_id,
            snapshot=self.origin.snapshot,
            owner=self.owner,
        )

    async def whole(self) -> bytes:
        """The JSON of the answer. Where the waiting ends early, the engine's work is cancelled."""
        generation = await until(self.deadline, result(self.submit()))
        return await self.edge.apart(_json, self.answering, generation)


def _json(answering: Answering, generation: Generation) -> bytes:
    return orjson.dumps(generation_body(answering, generation))
