"""What a request goes on from: the beginning, a session, or a snapshot that it brings along."""

from __future__ import annotations

import re
from dataclasses import dataclass

from service.api.bodies import parse_base64
from service.api.context import Caller, Edge
from service.api.generate_schemas import GenerateBody
from service.engine.snapshots import Snapshot, made_by
from service.errors import InvalidInput, SessionConflict
from service.runtime import Runtime
from service.served import GenerativeModel, ServedModel
from service.sessions.session import Session, no_session

_ID = re.compile("sess_[a-z2-7]{26}")


@dataclass(frozen=True)
class Origin:
    """The model that goes on, and the snapshot that came with the request."""

    model: GenerativeModel
    snapshot: Snapshot | None = None


async def origin_of(edge: Edge, body: GenerateBody, caller: Caller) -> Origin:
    """Of a generation. Raises NotFound, InvalidInput, SessionConflict, Overloaded."""
    runtime = edge.runtime
    if body.session_id is not None and body.snapshot is not None:
        raise InvalidInput.at(("snapshot",), "a session has its own state; send session_id or snapshot")
    if body.session_id is not None:
        session = await session_to_write(edge, body.session_id, caller)
        return Origin(runtime.model(named(session, body.model), "generation"))
    if body.snapshot is None:
        return Origin(runtime.model(body.model, "generation"))
    model, snapshot = await edge.offload(len(body.snapshot), _decoded, runtime, body.snapshot, body.model)
    return Origin(runtime.model(model.name, "generation"), snapshot)


async def session_of(edge: Edge, id: str, key: str) -> Session:
    """A key's session of that id as it was last written. Raises NotFound, SessionConflict, Overloaded."""
    if not _ID.fullmatch(id):
        raise no_session(id)
    sessions = edge.runtime.sessions
    return sessions.show(id, key) if sessions.store is None else await edge.apart(sessions.show, id, key)


async def session_to_write(edge: Edge, id: str, caller: Caller) -> Session:
    """As `session_of`. Raises SessionConflict too, where it was this request that wrote it, and its answer was lost."""
    session = await session_of(edge, id, caller.owner.key)
    if caller.retried and session.request == caller.id:
        raise SessionConflict(
            f"session {id} took this request in, as its version {session.version}, but the answer was lost with the "
            "replica that made it; do not send it again"
        )
    return session


def named(session: Session, model: str | None) -> str:
    """The session's model, which a request need not name. Raises InvalidInput where it names another."""
    if model not in (None, session.model):
        raise InvalidInput.at(("model",), f"session {session.id} is of {session.model}; leave it out")
    return session.model


def snapshot_from(runtime: Runtime, data: bytes, model: str | None) -> tuple[ServedModel | GenerativeModel, Snapshot]:
    """A snapshot's bytes, and the model that made it, which a request need not name.

    Raises NotFound for a model that is not served, InvalidInput, SessionConflict for a state of another.
    """
    if model is not None:
        served = runtime.served(model)
        return served, served.snapshots.load(data)
    name, fingerprint = made_by(data)
    for served in runtime.models.values():
        if served.snapshots.fingerprint == fingerprint:
            return served, served.snapshots.load(data)
    known = ", ".join(runtime.models)
    raise SessionConflict(f"the snapshot was made by {name[:100]!r} (hash {fingerprint[:16]}); served are {known}")


def _decoded(runtime: Runtime, snapshot: str, model: str | None) -> tuple[ServedModel | GenerativeModel, Snapshot]:
    return snapshot_from(runtime, parse_base64(snapshot, ("snapshot",)), model)
