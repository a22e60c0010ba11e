"""HTTP on the server's socket: uvicorn's protocol around the FastAPI application, loaded late.

FastAPI and Pydantic cost more to import than everything else; the first `urun` of the day does not
wait for them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast

from updraft.model.access import Principal
from updraft.server.api.parts import Parts

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn.server import ServerState


log = logging.getLogger("updraft.http")

_PRELOAD_SECONDS = 1.0
_FINISH_SECONDS = 0.5


class HttpApi:
    """Makes a protocol for each HTTP connection."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._config: Config | None = None
        self._state: ServerState | None = None
        self._loading: asyncio.Task[None] | None = None

    def protocol(self, principal: Principal | None, peer: str) -> asyncio.Protocol:
        """Return the protocol of one connection from ``peer``.

        ``principal``: where all its requests come from; None: each request says so.
        """
        if self._config is None:
            waiting = _Waiting(self, principal, peer)
            self._begin_loading().add_done_callback(waiting.loaded)
            return waiting
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: PLC0415

        assert self._state is not None  # noqa: S101 - loaded with the configuration
        protocol = HttpToolsProtocol(config=self._config, server_state=self._state, app_state={})
        inner = protocol.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope["principal"] = principal
            await inner(scope, receive, send)

        protocol.app = app
        return protocol

    @property
    def is_loading(self) -> bool:
        """Whether the application is not there yet."""
        return self._config is None

    @property
    def connections(self) -> int:
        """How many connections speak HTTP."""
        return 0 if self._state is None else len(self._state.connections)

    async def preload(self) -> None:
        """Load when the first jobs have had their turn.

        Not only for speed: after an upgrade on the disk, a part that is loaded late would be of
        another release than the rest.
        """
        await asyncio.sleep(_PRELOAD_SECONDS)
        await asyncio.shield(self._begin_loading())

    async def finish(self) -> None:
        """Give the answers that are under way a moment to get out."""
        if self._state is not None and self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=_FINISH_SECONDS)

    def _begin_loading(self) -> asyncio.Task[None]:
        # Off the loop: terminals and launches do not stand still meanwhile.
        if self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(self._load), name="load http")
        return self._loading

    def _load(self) -> None:
        from uvicorn import Config  # noqa: PLC0415
        from uvicorn.server import ServerState  # noqa: PLC0415

        from updraft.server.api.routes import make_app  # noqa: PLC0415

        config = Config(
            make_app(self._parts),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # a client does not say itself where it comes from
            timeout_keep_alive=5,
        )
        config.load()
        self._state = ServerState()
        self._config = config


class _Waiting(asyncio.Protocol):
    """Holds a connection's first bytes until the application is loaded."""

    def __init__(self, api: HttpApi, principal: Principal | None, peer: str) -> None:
        self._api = api
        self._principal = principal
        self._peer = peer
        self._transport: asyncio.Transport | None = None
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._held += data
        if self._transport is not None:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def loaded(self, loading: asyncio.Task[None]) -> None:
        """Hand the connection over."""
        transport = self._transport
        if transport is None:
            return
        error = None if loading.cancelled() else loading.exception()
        if self._api.is_loading:
            log.error("cannot load the HTTP application", exc_info=error)
            transport.close()
            return
        protocol = self._api.protocol(self._principal, self._peer)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(self._held)
        transport.resume_reading()
