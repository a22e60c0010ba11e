"""What a request does whose database goes away: nothing, or what it was asked, and never both."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL

from tests import postgresql
from tests.postgresql import Cluster
from tests.server import api
from tests.server.api import Api, with_api
from updraft.store import database as database_module
from updraft.store import schema
from updraft.store.database import Database
from updraft.store.leadership import Leadership

pytestmark = pytest.mark.postgresql

Run = Callable[[Callable[[Api], Awaitable[None]]], None]


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """One that may be killed."""
    with postgresql.cluster() as made:
        yield made


@pytest.fixture
def led(own_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a check with the application of a server that leads, and has little patience."""
    url = own_cluster.url(own_cluster.make_database())
    monkeypatch.setattr(database_module, "AWAY_SECONDS", 0.5)
    leadership = Leadership(url, lambda: pytest.fail("nobody else leads"))
    asyncio.run(leadership.take(lambda _: None))

    def opened(url: str | URL) -> Database:
        database = Database(url, leadership)
        schema.upgrade(database.engine)
        leadership.begin()
        return database

    monkeypatch.setattr(api, "Database", opened)
    monkeypatch.setattr(api, "database_url", lambda _folder: url)
    yield lambda check: with_api(tmp_path, check)
    leadership.release()


def lose_next_commit(made: Api, cluster: Cluster) -> None:
    """Kill the database when it has committed once more, before it can say so."""
    dialect = made.database.engine.dialect
    real = dialect.do_commit

    def commit_and_lose(connection: Any) -> None:
        real(connection)
        if threading.current_thread().name == "committer":
            vars(dialect)["do_commit"] = real
            cluster.kill()
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    vars(dialect)["do_commit"] = commit_and_lose


async def asked(made: Api, key: str) -> tuple[int, str]:
    """Submit; return the status, and the job's id or the error's code."""
    body = {"key": key, "argv": ["true"], "directory": "/"}
    answer = await made.ask("POST", "/jobs", json=body)
    found = answer.json()
    return answer.status_code, found.get("id") or found["error"]["code"]


def test_a_submission_that_is_refused_left_nothing(own_cluster: Cluster, led: Run) -> None:
    async def check(made: Api) -> None:
        await asyncio.to_thread(own_cluster.kill)
        assert await asked(made, "a" * 32) == (503, "not_ready")
        assert made.execution.live.jobs == {}
        await asyncio.to_thread(own_cluster.start)
        status, job = await asked(made, "a" * 32)
        assert status == 201
        assert await made.ids() == [job]

    led(check)


def test_a_submission_of_which_it_is_not_known_is_the_same_job_when_it_is_asked_for_again(
    own_cluster: Cluster, led: Run
) -> None:
    async def check(made: Api) -> None:
        before = await made.submit("b" * 32)
        lose_next_commit(made, own_cluster)
        assert await asked(made, "a" * 32) == (503, "not_ready")
        (late,) = [job.id for job in made.execution.live.jobs.values() if job.id != before]
        assert await asked(made, "a" * 32) == (503, "not_ready")
        await asyncio.to_thread(own_cluster.start)
        status, job = await asked(made, "a" * 32)
        assert (status, job) == (201, late)
        assert sorted(await made.ids()) == sorted([before, job])
        live = sorted(job.id for job in made.execution.live.jobs.values())
        assert live == sorted([before, job])
        cancelled = await made.ask("POST", f"/jobs/{job}/cancel")
        assert cancelled.json()["state"] == "CANCELLED"

    led(check)


def test_a_cancellation_that_is_refused_is_not_done_later(own_cluster: Cluster, led: Run) -> None:
    async def check(made: Api) -> None:
        job = await made.submit("a" * 32)
        await asyncio.to_thread(own_cluster.kill)
        answer = await made.ask("POST", f"/jobs/{job}/cancel")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        await asyncio.to_thread(own_cluster.start)
        assert (await made.ask("GET", f"/jobs/{job}")).json()["state"] == "IN_QUEUE"
        answer = await made.ask("POST", f"/jobs/{job}/cancel")
        assert answer.json()["state"] == "CANCELLED"

    led(check)


def test_a_cancellation_of_which_it_is_not_known_is_found_done(
    own_cluster: Cluster, led: Run
) -> None:
    async def check(made: Api) -> None:
        job = await made.submit("a" * 32)
        lose_next_commit(made, own_cluster)
        answer = await made.ask("POST", f"/jobs/{job}/cancel")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "unavailable"
        assert "went away while" in answer.json()["error"]["message"]
        await asyncio.to_thread(own_cluster.start)
        await made.execution.live.wait_for_end()
        assert (await made.ask("GET", f"/jobs/{job}")).json()["state"] == "CANCELLED"
        assert made.execution.live.jobs == {}

    led(check)
