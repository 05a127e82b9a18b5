"""What the routes share."""

from __future__ import annotations

import asyncio

from service.api.context import Edge
from service.logs import request_id
from tests.runtimes import StartRuntime


def test_a_thread_logs_as_the_request_that_it_works_for(start_runtime: StartRuntime) -> None:
    edge = Edge(start_runtime())

    async def request() -> str | None:
        request_id.set("pred_1")
        return await edge.apart(request_id.get)

    assert asyncio.run(request()) == "pred_1"
