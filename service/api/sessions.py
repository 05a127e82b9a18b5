"""The routes of sessions: the state as a thing of its own."""

from __future__ import annotations

import time
from typing import Any

import orjson
from fastapi import APIRouter, Depends
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.api.bodies import media_type, parse_base64, parse_json, read_body
from service.api.context import Caller, Edge, no_query
from service.api.generate_request import faulty, parts_from
from service.api.openapi import JSON, SAFETENSORS, create_docs, gone_docs, json_docs, snapshot_docs, steps_docs
from service.api.origin import named, session_of, session_to_write, snapshot_from
from service.api.predict import answer_clip, read_clip
from service.api.session_schemas import SessionBody, SessionOut, SessionPrompt
from service.api.waiting import deadline_of, header_deadline_ms, last_moment, result, unless_gone, until
from service.codecs.prompt import PromptPart
from service.errors import InvalidInput
from service.owner import Owner
from service.served import GenerativeModel, ServedModel
from service.sessions.session import Session


def sessions_router(edge: Edge) -> APIRouter:
    """Sessions of models of both tasks."""
    router = APIRouter(prefix="/sessions", dependencies=[Depends(no_query)], tags=["sessions"])

    @router.post("", **create_docs())
    async def create(request: Request) -> Response:
        """A new session: from the beginning, from a snapshot, or from where another session stands."""
        edge.gate.admit()
        caller, settings = Caller.of(request), edge.runtime.settings
        end = last_moment(caller.arrived, header_deadline_ms(request, settings), settings)
        kind = media_type(request, JSON, SAFETENSORS)
        body = await until(end, read_body(request, settings.max_body_bytes))
        session = await until(end, _create(edge, body, kind, caller.owner))
        return _json(_shown(edge, session))

    @router.get("/{id}", **json_docs(SessionOut, 404, 409, 503))
    async def show(id: str, request: Request) -> Response:
        """A session as it was last written."""
        return _json(_shown(edge, await session_of(edge, id, Caller.of(request).owner.key)))

    @router.post("/{id}/steps", **steps_docs())
    async def steps(id: str, request: Request) -> Response:
        """More steps: a clip as POST /predict reads it, answered alike, or parts of a prompt, which are only read.

        The session has the state after them once they are answered, and is as it was if they are not.
        """
        edge.gate.admit()
        caller, settings = Caller.of(request), edge.runtime.settings
        budget_ms = header_deadline_ms(request, settings)
        end = last_moment(caller.arrived, budget_ms, settings)
        session = await until(end, session_to_write(edge, id, caller))
        model = edge.runtime.served(session.model)
        if isinstance(model, ServedModel):
            call = await until(end, read_clip(edge, request))
            named(session, call.options.model)
            deadline = deadline_of(caller.arrived, budget_ms, call.options.deadline_ms, settings)
            answer = answer_clip(edge, call, deadline, caller.id, caller.owner, session)
            return Response(await unless_gone(request, answer), media_type=JSON)
        body, parts = await until(end, _read_prompt(edge, request))
        named(session, body.model)
        deadline = deadline_of(caller.arrived, budget_ms, body.deadline_ms, settings)
        reading = _read(edge, model, session, parts, deadline, caller)
        return _json(await unless_gone(request, until(deadline, reading)))

    @router.get("/{id}/snapshot", **snapshot_docs())
    async def snapshot(id: str, request: Request) -> Response:
        """The session's whole state, of a size that does not grow, to be kept and restored on any replica."""
        session = await session_of(edge, id, Caller.of(request).owner.key)
        data = edge.runtime.served(session.model).snapshots.dump(session.snapshot)
        return Response(data, media_type=SAFETENSORS)

    @router.delete("/{id}", **gone_docs())
    async def delete(id: str, request: Request) -> Response:
        """Forget a session."""
        key = Caller.of(request).owner.key
        await session_of(edge, id, key)
        await edge.apart(edge.runtime.sessions.delete, id, key)
        return Response(status_code=204)

    return router


async def _create(edge: Edge, body: bytes, kind: str, owner: Owner) -> Session:
    runtime = edge.runtime
    asked = SessionBody() if kind == SAFETENSORS else await edge.offload(len(body), _session_body, body)
    data = body if kind == SAFETENSORS else None
    if asked.snapshot is not None:
        data = await edge.offload(len(asked.snapshot), parse_base64, asked.snapshot, ("snapshot",))
    if asked.fork_of is not None:
        if data is not None:
            raise InvalidInput.at(("fork_of",), "a session begins from one state; send fork_of or snapshot")
        other = await session_of(edge, asked.fork_of, owner.key)
        name, state = named(other, asked.model), other.snapshot
    elif data is not None:
        model, state = await edge.offload(len(data), snapshot_from, runtime, data, asked.model)
        name = model.name
    else:
        model = next(iter(runtime.models.values())) if asked.model is None else runtime.served(asked.model)
        name, state = model.name, model.snapshots.initial()
    return await edge.apart(runtime.sessions.create, name, state, owner)


def _session_body(body: bytes) -> SessionBody:
    try:
        return SessionBody.model_validate(parse_json(body))
    except ValidationError as error:
        raise faulty(error) from None


async def _read_prompt(edge: Edge, request: Request) -> tuple[SessionPrompt, tuple[PromptPart, ...]]:
    settings = edge.runtime.settings
    media_type(request, JSON)
    body = await read_body(request, settings.max_body_bytes)
    return await edge.offload(len(body), _prompt, body, settings.max_media_bytes)


def _prompt(body: bytes, max_media_bytes: int) -> tuple[SessionPrompt, tuple[PromptPart, ...]]:
    document = parse_json(body)
    try:
        asked = SessionPrompt.model_validate(document)
    except ValidationError as error:
        raise faulty(error) from None
    return asked, parts_from(asked.prompt, max_media_bytes)


async def _read(
    edge: Edge, model: GenerativeModel, session: Session, parts: tuple[PromptPart, ...], deadline: float, caller: Caller
) -> dict[str, Any]:
    future = edge.runtime.read(model, parts, session.id, deadline=deadline, request_id=caller.id, owner=caller.owner)
    read = await result(future)
    return {
        "id": caller.id,
        "session_id": session.id,
        "usage": {"prompt_tokens": read.prompt_tokens},
        "timing_ms": {"queue": round(1e3 * read.queue_s, 3), "inference": round(1e3 * read.inference_s, 3)},
    }


def _shown(edge: Edge, session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "model": session.model,
        "task": edge.runtime.served(session.model).task,
        "steps": session.snapshot.steps,
        "version": session.version,
        "snapshot_bytes": session.snapshot.bytes,
        "created_at": round(session.created_at, 3),
        "expires_in_s": round(max(0.0, session.expires_at - time.time()), 3),
    }


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), media_type=JSON)
