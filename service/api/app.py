"""The ASGI application: routes on a running runtime."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version

from anyio import to_thread
from fastapi import FastAPI

from service.api.browsers import HeadersMiddleware, allow_origins, docs_router
from service.api.context import Edge, Gate
from service.api.generate import generate_router
from service.api.health import health_router
from service.api.intake import IntakeMiddleware
from service.api.keys import KeyMiddleware
from service.api.methods import HeadMiddleware
from service.api.metrics import metrics_router
from service.api.middleware import RequestMiddleware
from service.api.models import models_router
from service.api.openapi import install_openapi
from service.api.predict import predict_router
from service.api.problems import install_problems
from service.api.sessions import sessions_router
from service.api.stream import stream_router
from service.runtime import Runtime


def create_app(runtime: Runtime, gate: Gate | None = None) -> FastAPI:
    """The service over `runtime`, which the application closes when it shuts down.

    `gate` counts the requests in flight, and refuses new work once whoever passed it sets it to draining.
    """
    edge = Edge(runtime, gate or Gate())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        runtime.returns.use(asyncio.get_running_loop())
        yield
        await to_thread.run_sync(runtime.close, runtime.settings.drain_s)
        runtime.returns.use(None)

    app = FastAPI(
        title="Serpentine",
        version=version("serpentine"),
        description="Multimodal state-space models: sentiment of text, audio and video; generation of text, images and "
        "speech.",
        lifespan=lifespan,
        docs_url=None,  # ours has a policy
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours tell of the same requests
    )
    routers = (
        predict_router,
        stream_router,
        generate_router,
        sessions_router,
        models_router,
        health_router,
        metrics_router,
    )
    for make_router in routers:
        app.include_router(make_router(edge))
    app.include_router(docs_router(app))
    install_problems(app, runtime.metrics)
    install_openapi(app)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(IntakeMiddleware, edge=edge)
    app.add_middleware(KeyMiddleware, edge=edge)
    app.add_middleware(RequestMiddleware, edge=edge)  # around it: what is refused has an id and a log line too
    allow_origins(app, runtime.settings.cors_origins)
    app.add_middleware(HeadersMiddleware)
    return app
