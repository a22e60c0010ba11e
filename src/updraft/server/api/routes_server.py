"""The server itself over HTTP."""

from __future__ import annotations

from fastapi import APIRouter

from updraft.server.api import presenting
from updraft.server.api.requests import Who
from updraft.server.services.instance import Instance
from updraft.wire import schemas


def make_router(instance: Instance) -> APIRouter:
    """Return the routes of the server."""
    router = APIRouter(tags=["server"])

    @router.get("/status", summary="Show server, runner and paths")
    async def status(who: Who) -> schemas.Status:
        return presenting.status(instance.status(who))

    @router.post("/stop", status_code=204, summary="Stop server and runner")
    async def stop(who: Who, body: schemas.StopRequest) -> None:
        """Answers when all jobs have ended; the processes end right after."""
        await instance.stop(who, body.mode)

    return router
