"""HTTP on the server's socket: uvicorn's protocol around the FastAPI application, loaded late.

FastAPI and Pydantic cost more to import than everything else; the first `urun` of the day does not
wait for them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from updraft.model.job import Principal
from updraft.server.services.execution import Execution
from updraft.server.services.instance import Instance
from updraft.server.services.jobs import Jobs
from updraft.store.database import Database

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn.server import ServerState


_PRELOAD_SECONDS = 1.0


class HttpApi:
    """Makes a protocol for each HTTP connection."""

    def __init__(
        self, execution: Execution, jobs: Jobs, database: Database, instance: Instance
    ) -> None:
        self._parts = (execution, jobs, database, instance)
        self._config: Config | None = None
        self._state: ServerState | None = None

    def protocol(self, principal: Principal) -> asyncio.Protocol:
        """Return the protocol of one connection, whose requests come from ``principal``."""
        if self._config is None:
            self._load()
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: PLC0415

        assert self._config is not None  # noqa: S101 - loaded above
        assert self._state is not None  # noqa: S101
        protocol = HttpToolsProtocol(config=self._config, server_state=self._state, app_state={})
        inner = protocol.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope["principal"] = principal
            await inner(scope, receive, send)

        protocol.app = app
        return protocol

    async def preload(self) -> None:
        """Load when the first jobs have had their turn, off the loop.

        Not only for speed: after an upgrade on the disk, a part that is loaded late would be of
        another release than the rest.
        """
        await asyncio.sleep(_PRELOAD_SECONDS)
        if self._config is None:
            await asyncio.to_thread(self._load)

    def _load(self) -> None:
        from uvicorn import Config  # noqa: PLC0415
        from uvicorn.server import ServerState  # noqa: PLC0415

        from updraft.server.api.routes import make_app  # noqa: PLC0415

        config = Config(
            make_app(*self._parts),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=5,
        )
        config.load()
        self._config, self._state = config, ServerState()
