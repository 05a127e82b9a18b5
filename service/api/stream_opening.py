"""From the first message of WS /predict/stream to its session, new or gone on with, and the answer to it."""

from __future__ import annotations

from base64 import b64encode

import orjson

from service.api.bodies import parse_base64
from service.api.stream_messages import Start
from service.errors import InvalidInput
from service.live import LiveOptions, LiveSession
from service.live_keeping import KeptStream
from service.owner import Owner
from service.runtime import Runtime


def open_session(runtime: Runtime, start: Start, owner: Owner) -> tuple[LiveSession, KeptStream]:
    """Begin or take up a session. Waits for the store. Raises ServiceError."""
    name = start.model
    if start.session_id is not None:
        if start.snapshot is not None:
            raise InvalidInput.at(("snapshot",), "session_id and snapshot came; a session goes on from one of them")
        name = name or runtime.sessions.show(start.session_id, owner.key).model
    model, settings = runtime.model(name), runtime.settings
    hz = model.extractor.spec.clock.hz
    if start.timeline_hz is not None and (hz is None or start.timeline_hz > hz):
        limit = "this model's clock is aligned: steps have no times" if hz is None else f"at most {hz:g} a second"
        raise InvalidInput.at(("timeline_hz",), limit)
    options = LiveOptions(
        lag_s=(settings.stream_lag_ms if start.lag_ms is None else start.lag_ms) / 1000,
        timeline_hz=start.timeline_hz,
        half_life_s=start.half_life_s or settings.stream_half_life_s,
    )
    snapshot = None
    if start.snapshot is not None:
        snapshot = model.snapshots.load(parse_base64(start.snapshot, ("snapshot",)))
    kept = KeptStream(runtime, model, start.session_id, snapshot, owner)
    try:
        return LiveSession(runtime, model, options, kept.id, kept.state, owner), kept
    except BaseException:
        kept.abandon()
        raise


def dumped(session: LiveSession) -> str:
    """The session's state in base64, as `snapshot` of another start takes it."""
    return b64encode(session.model.snapshots.dump(session.snapshot())).decode()


def started(session: LiveSession) -> bytes:
    """`session.started`."""
    options, config = session.options, session.model.config
    return orjson.dumps(
        {
            "type": "session.started",
            "session_id": session.id,
            "messages": session.messages,
            "model": session.model.name,
            "recipe": session.model.card["recipe"],
            "scale": config.scale,
            "labels": config.labels,
            "deterministic": session.model.lane.runner.same_bits_from(session.state),
            "lag_ms": round(1000 * options.lag_s),
            "timeline_hz": options.timeline_hz,
            "half_life_s": options.half_life_s,
        }
    )
