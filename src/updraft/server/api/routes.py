"""The HTTP application: the routers under ``/api/v1``, and one shape for every error."""

from __future__ import annotations

import math
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import updraft
from updraft import errors
from updraft.server.api import (
    login_pages,
    routes_fleet,
    routes_installing,
    routes_jobs,
    routes_logs,
    routes_operations,
    routes_projects,
    routes_server,
    routes_sign_in,
    routes_users,
)
from updraft.server.api.guard import Guard
from updraft.server.api.observed import HEADER, REQUEST_ID, Observed
from updraft.server.api.parts import Parts
from updraft.server.services.actions import Actions
from updraft.server.services.installing import Installing
from updraft.server.services.logs import Logs
from updraft.server.services.operations import Operations
from updraft.wire import schemas

PREFIX = "/api/v1"
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": schemas.Error,
        "description": "the request cannot be met; nothing was changed",
    },
    "5XX": {"model": schemas.Error, "description": "the server failed, or is not available now"},
}
_CODES = {404: "not_found", 405: "bad_request", 403: "not_allowed"}


def make_app(parts: Parts) -> FastAPI:
    """Return the application."""
    app = FastAPI(
        title="Updraft",
        version=updraft.__version__,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # those pages load their scripts from elsewhere
        redoc_url=None,
    )
    api = APIRouter(prefix=PREFIX, responses=_ERRORS)
    access = parts.access
    actions = Actions(parts.jobs, parts.execution, access.admission)
    logs = Logs(parts.database, parts.execution, parts.jobs)
    api.include_router(routes_jobs.make_router(parts.jobs, actions))
    api.include_router(routes_logs.make_router(logs))
    installing = Installing(parts.instance.folders, parts.instance.settings)
    api.include_router(routes_fleet.make_router(parts.fleet, installing))
    api.include_router(routes_server.make_router(parts.instance))
    api.include_router(routes_sign_in.make_router(access))
    api.include_router(routes_users.make_router(access))
    api.include_router(routes_projects.make_router(access))
    app.include_router(api)
    app.include_router(login_pages.make_router(access))
    app.include_router(routes_installing.make_router(installing), responses=_ERRORS)
    app.include_router(routes_operations.make_router(parts.operations), responses=_ERRORS)
    app.state.access = access
    app.state.operations = parts.operations
    # The last one that is added is the outermost.
    per_second = parts.instance.settings.requests_per_second
    app.add_middleware(Guard, access=access, per_second=per_second)
    app.add_middleware(Observed, operations=parts.operations, prefix=PREFIX)
    app.add_exception_handler(errors.UpdraftError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _failed)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, in which errors have our shape and not FastAPI's."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.UpdraftError)  # noqa: S101 - registered for these
    answer = _answer(request, error.status, error.code, error.message)
    if error.retry_after_seconds is not None:
        answer.headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
    return answer


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for these
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    said = first["msg"].removeprefix("Value error, ")
    said = said[:1].lower() + said[1:]
    return _answer(request, 400, errors.BadRequest.code, f"{'.'.join(where) or 'the body'}: {said}")


async def _no_route(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for these
    message = f"{request.method} {request.url.path}: {error.detail}; see {PREFIX}/openapi.json"
    code = _CODES.get(error.status_code, errors.BadRequest.code)
    return _answer(request, error.status_code, code, message)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    identity = request.scope.get(REQUEST_ID, "")
    said = f"the server failed ({type(error).__name__}); see its log for request {identity}"
    answer = _answer(request, 500, errors.UpdraftError.code, said)
    answer.headers[HEADER] = identity
    return answer


def _answer(request: Request, status: int, code: str, message: str) -> JSONResponse:
    operations: Operations = request.app.state.operations
    operations.measures.error(code)
    body = schemas.Error(error=schemas.ErrorDetail(code=code, message=message))
    return JSONResponse(body.model_dump(), status_code=status)
