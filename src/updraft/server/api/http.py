"""HTTP on the server's socket: uvicorn's protocol around the FastAPI application, loaded late.

FastAPI and Pydantic cost more to import than everything else; the first `urun` of the day does not
wait for them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

from updraft.server.api.door import Guest
from updraft.server.api.parts import Parts

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn.server import ServerState

    from updraft.server.api.bounded_http import Bodies

log = logging.getLogger("updraft.http")

_PRELOAD_SECONDS = 1.0
_FINISH_SECONDS = 0.5


class HttpApi:
    """Makes a protocol for each HTTP connection."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._bodies: Bodies | None = None
        self._config: Config | None = None
        self._state: ServerState | None = None
        self._loading: asyncio.Task[None] | None = None

    def protocol(self, guest: Guest) -> asyncio.Protocol:
        """Return the protocol of one connection.

        Its guest's principal: where all its requests come from; None: each request says so.
        """
        if self._config is None:
            waiting = _Waiting(self, guest)
            self._begin_loading().add_done_callback(waiting.loaded)
            return waiting
        from updraft.server.api.bounded_http import BoundedHttp  # noqa: PLC0415

        assert self._state is not None  # noqa: S101 - loaded with the configuration
        assert self._bodies is not None  # noqa: S101 - likewise
        return BoundedHttp(self._config, self._state, guest, self._bodies)

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

        from updraft.server.api.bounded_http import Bodies  # noqa: PLC0415
        from updraft.server.api.routes import make_app  # noqa: PLC0415

        # What strangers send is no news: a line for each of their mistakes would fill the disk.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)

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
        self._bodies = Bodies(self._parts.instance.settings.max_body)
        self._config = config


class _Waiting(asyncio.Protocol):
    """Holds a connection's first bytes until the application is loaded."""

    def __init__(self, api: HttpApi, guest: Guest) -> None:
        self._api = api
        self._guest = guest
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
        self._guest.gone()

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
        protocol = self._api.protocol(self._guest)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(self._held)
        transport.resume_reading()
