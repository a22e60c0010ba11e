"""The HTTP application over a database of its own, without sockets and without a runner."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from updraft import settings
from updraft.configuration.schema import Server
from updraft.model.access import Principal
from updraft.model.pool import LOCAL, Pool
from updraft.scheduling.capacity import Capacity
from updraft.server.api.parts import Parts
from updraft.server.api.routes import make_app
from updraft.server.auth.environment_keys import EnvironmentKeys
from updraft.server.relay.relay import Relay
from updraft.server.services.access import Access
from updraft.server.services.execution import Execution
from updraft.server.services.fleet import Fleet
from updraft.server.services.instance import Instance
from updraft.server.services.jobs import Jobs
from updraft.server.services.live import LiveRunner
from updraft.server.services.oidc import OidcSettings
from updraft.server.services.operations import Operations
from updraft.server.services.sign_in import SessionLimits
from updraft.server.services.task_access import TaskAccess
from updraft.store import jobs as queries
from updraft.store import schema
from updraft.store.database import Database


def sqlite_in(folder: Path) -> str:
    """Return the URL of a database in a folder."""
    return f"sqlite:///{folder / 'updraft.db'}"


database_url: Callable[[Path], str] = sqlite_in
"""Where `api` has its database; the fixture `either_database` says it for a test."""

_BESIDE_THE_API = ("/login", "/metrics", "/join", "/wheels")
ME = Principal("uid:4000000")  # nobody who may run the tests


class Api:
    """Requests to the application, as one principal or another."""

    def __init__(
        self,
        app: FastAPI,
        parts: Parts,
    ) -> None:
        self.app = app
        self.parts = parts
        self.keys = parts.keys
        self.jobs = parts.jobs
        self.access = parts.access
        self.database = parts.database
        self.execution = parts.execution
        self.document: dict[str, Any] = app.openapi()

    async def ask(
        self, method: str, path: str, who: Principal = ME, **options: Any
    ) -> httpx.Response:
        """Return the answer to one request of a peer that the door knows."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await self.app({**scope, "principal": who}, receive, send)

        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x/api/v1") as client:
            return await client.request(method, path, **options)

    async def send(
        self, method: str, path: str, token: str = "", project: str = "", **options: Any
    ) -> httpx.Response:
        """Return the answer to one request from elsewhere, with a token or with none."""
        headers: dict[str, str] = {**options.pop("headers", {})}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if project:
            headers["Updraft-Project"] = project
        async with self.browser(options.pop("peer", "192.0.2.1")) as client:
            full = path if path.startswith(_BESIDE_THE_API) else f"/api/v1{path}"
            return await client.request(method, full, headers=headers, **options)

    def browser(self, peer: str = "192.0.2.1") -> httpx.AsyncClient:
        """Return a client at an address, that keeps cookies, for the whole server."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=(peer, 40000))
        return httpx.AsyncClient(transport=transport, base_url="https://updraft.test")

    async def submit(self, key: str, who: Principal = ME, **fields: Any) -> str:
        """Submit a job and return its id."""
        body = {"key": key, "argv": ["true"], "directory": "/", **fields}
        answer = await self.ask("POST", "/jobs", who, json=body)
        assert answer.status_code == 201, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    async def ids(self, query: str = "", who: Principal = ME) -> list[str]:
        """Return the ids of all pages of a list."""
        found: list[str] = []
        cursor = ""
        while True:
            answer = await self.ask("GET", f"/jobs?{query}{cursor}", who)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            found += [job["id"] for job in page["jobs"]]
            if page["next_cursor"] is None:
                return found
            cursor = f"&cursor={page['next_cursor']}"


@asynccontextmanager
async def api(
    folder: Path, sessions: SessionLimits | None = None, oidc: OidcSettings | None = None
) -> AsyncIterator[Api]:
    """Return an application whose jobs wait, for its runner is away."""
    database = Database(database_url(folder))
    schema.upgrade(database.engine)
    keys = EnvironmentKeys(str(folder / "keys"), await database.read(queries.used_key_slots))
    execution = Execution(database, keys, Relay(), str(folder / "logs"))
    await execution.load()
    # It has been there and is away: nothing starts, and nobody waits for it.
    capacity = Capacity(4000, 1 << 40, frozenset())
    fleet = Fleet(database, execution, [Pool("local")])
    await fleet.load()
    execution.runners.joined(LiveRunner(LOCAL, capacity, capacity, seen=0), [])
    jobs = Jobs(database, execution)
    folders = settings.Folders(str(folder), str(folder))
    instance = Instance(folders, execution, Server())
    access = Access(database, sessions, oidc)
    await access.load()
    execution.live.holdings.limits_of = access.limits_of
    access.when_changed = execution.schedule
    access.admission.stored = execution.live.stored
    access.admit_tasks(TaskAccess(database, keys, execution.live), execution.live)
    try:
        operations = Operations(execution, database, instance)
        parts = Parts(database, keys, execution, jobs, fleet, instance, access, operations)
        app = make_app(parts)
        yield Api(app, parts)
    finally:
        await execution.settle()
        await access.close()
        await database.close()
        keys.close()


def with_api(
    folder: Path,
    check: Callable[[Api], Awaitable[None]],
    sessions: SessionLimits | None = None,
    oidc: OidcSettings | None = None,
) -> None:
    """Run ``check`` with an application in ``folder``."""

    async def run() -> None:
        async with api(folder, sessions, oidc) as made, asyncio.timeout(60):
            await check(made)

    asyncio.run(run())


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the objects of an NDJSON answer."""
    return [json.loads(line) for line in answer.text.splitlines()]
