"""GET /metrics for Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from starlette.requests import Request
from starlette.responses import Response

from service.api.context import Edge, no_query
from service.api.openapi import metrics_docs

STORE_S = 0.5
"""For which a scrape waits for the store of sessions. Prometheus itself waits for ten seconds by default, and drops all
that it was told where that is too short: a store that hangs is to cost its own figures alone."""


def metrics_router(edge: Edge) -> APIRouter:
    """The scrape."""
    router = APIRouter(dependencies=[Depends(no_query)], tags=["metrics"])

    @router.get("/metrics", **metrics_docs())
    async def metrics(request: Request) -> Response:
        """All metrics as Prometheus text, or as OpenMetrics where Accept names it."""
        registry, census = edge.runtime.metrics.registry, edge.runtime.sessions.census
        if census is not None:
            _, late = await asyncio.wait([asyncio.wrap_future(census.ask())], timeout=STORE_S)
            if late:
                census.forget()
        if "application/openmetrics-text" in request.headers.get("accept", ""):
            text, kind = openmetrics.generate_latest(registry), openmetrics.CONTENT_TYPE_LATEST  # type: ignore[no-untyped-call]
        else:
            text, kind = generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4
        return Response(text, headers={"Content-Type": kind})

    return router
