"""What machines need that are to become runners: a script and wheels, for everybody."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, Response

from updraft.server.services.installing import Installing

_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}
_HTML: dict[int | str, dict[str, Any]] = {200: {"content": {"text/html": {}}}}
_FILE: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}

WheelName = Annotated[str, Path(description="a wheel's file name")]


def make_router(installing: Installing) -> APIRouter:
    """Return the routes; all are public."""
    router = APIRouter(tags=["installing"])

    @router.get("/join", responses=_TEXT, response_model=None, summary="A script that joins")
    def join(host: str = Header(default="", include_in_schema=False)) -> Response:
        """For a shell: makes its machine a runner."""
        return PlainTextResponse(installing.script(host), headers={"Cache-Control": "no-store"})

    @router.get("/wheels/", responses=_HTML, response_model=None, summary="List the wheels")
    def index() -> Response:
        """What runners install from, as pip's `--find-links` reads it."""
        return HTMLResponse(installing.index())

    @router.get("/wheels/{wheel}", responses=_FILE, response_model=None, summary="Get a wheel")
    def get_wheel(wheel: WheelName) -> Response:
        return FileResponse(installing.wheel(wheel), media_type="application/octet-stream")

    return router
