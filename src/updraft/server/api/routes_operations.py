"""Whether the server lives and works, and what it counts: for whoever restarts and watches it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from updraft.server.api.requests import Who
from updraft.server.services.operations import Operations

OPENS_METRICS = "updraft.opens_metrics"
"""In the scope of a request that came with the token for the measures."""

_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}


def make_router(operations: Operations) -> APIRouter:
    """Return the routes; the first two are public and say next to nothing."""
    router = APIRouter(tags=["operations"])

    @router.get(
        "/healthz", responses=_TEXT, response_model=None, summary="Whether the process lives"
    )
    async def healthz() -> Response:
        return PlainTextResponse("alive\n")

    @router.get("/readyz", responses=_TEXT, response_model=None, summary="Whether the server works")
    async def readyz() -> Response:
        """503 while its database does not answer, a loop is late, or it is stopping."""
        await operations.check_ready()
        return PlainTextResponse("ready\n")

    @router.get(
        "/metrics", responses=_TEXT, response_model=None, summary="Measures, for Prometheus"
    )
    async def metrics(request: Request, who: Who) -> Response:
        """For server admins, and for the token of ``telemetry.metrics_token_file``."""
        from updraft.server.observe.exposition import CONTENT_TYPE  # noqa: PLC0415

        with_token = bool(request.scope.get(OPENS_METRICS))
        body = operations.render(who, with_token=with_token)
        return Response(body, media_type=CONTENT_TYPE)

    return router
