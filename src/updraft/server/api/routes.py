"""The HTTP application: routers under ``/api/v1``."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

import updraft
from updraft import errors
from updraft.server.services.execution import Execution
from updraft.server.services.instance import Instance
from updraft.server.services.jobs import Jobs
from updraft.store.database import Database


def make_app(execution: Execution, jobs: Jobs, database: Database, instance: Instance) -> FastAPI:
    """Return the application."""
    app = FastAPI(title="Updraft", version=updraft.__version__)

    @app.exception_handler(errors.UpdraftError)
    async def _answer(_request: Request, error: errors.UpdraftError) -> JSONResponse:
        body = {"error": {"code": error.code, "message": error.message}}
        return JSONResponse(body, status_code=error.status)

    @app.get("/api/v1/status")
    async def status() -> dict[str, Any]:
        return instance.status()

    @app.post("/api/v1/stop")
    async def stop(mode: str = "refuse") -> dict[str, Any]:
        await instance.stop(mode)
        return {}

    return app
