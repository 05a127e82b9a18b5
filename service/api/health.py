"""Probes. A full queue makes nothing unready, or overload would empty a fleet."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse, Response

from service.api.context import Edge, no_query
from service.api.openapi import json_docs
from service.api.schemas import Health
from service.errors import EngineDown


def health_router(edge: Edge) -> APIRouter:
    """`/livez`, `/readyz`, `/startupz`, and `/health`, which is `/readyz`."""
    router = APIRouter(dependencies=[Depends(no_query)], tags=["health"])

    def alive() -> None:
        if not edge.runtime.engine_alive:
            raise EngineDown("the engine thread is dead; restart the process", retry_after_s=5)

    def started() -> None:
        if not edge.runtime.ready:
            raise EngineDown("the models are not loaded and warmed yet", retry_after_s=1)

    @router.get("/livez", **json_docs(Health, 503))
    async def livez() -> Response:
        """Whether the process answers and the engine thread lives; a no is cured by a restart."""
        alive()
        return _yes("alive")

    @router.get("/startupz", **json_docs(Health, 503))
    async def startupz() -> Response:
        """Whether the models are loaded and warmed."""
        started()
        return _yes("started")

    @router.get("/readyz", **json_docs(Health, 503))
    @router.get("/health", **json_docs(Health, 503))
    async def readyz() -> Response:
        """Whether new work is welcome: started, alive and not shutting down."""
        edge.gate.admit()
        alive()
        started()
        return _yes("ready")

    return router


def _yes(status: str) -> Response:
    return JSONResponse({"status": status}, headers={"Cache-Control": "no-store"})
