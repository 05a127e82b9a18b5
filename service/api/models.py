"""GET /models and /models/{name}: the model cards."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Depends
from starlette.responses import Response

from service.api.context import Edge, no_query
from service.api.openapi import JSON, json_docs
from service.api.schemas import ModelCard, ModelList


def models_router(edge: Edge) -> APIRouter:
    """What is served."""
    router = APIRouter(prefix="/models", dependencies=[Depends(no_query)], tags=["models"])

    @router.get("", **json_docs(ModelList))
    async def list_models() -> Response:
        """All models' cards, and which of them answers a task where a request names none."""
        cards = [model.card for model in edge.runtime.models.values()]
        first = {card["task"]: card["name"] for card in reversed(cards)}
        return Response(
            orjson.dumps({"default": cards[0]["name"], "defaults": first, "models": cards}), media_type=JSON
        )

    @router.get("/{name}", **json_docs(ModelCard, 404))
    async def show_model(name: str) -> Response:
        """One model's card: what it reads, its limits, licence, data, measured quality and intended use."""
        return Response(orjson.dumps(edge.runtime.served(name).card), media_type=JSON)

    return router
