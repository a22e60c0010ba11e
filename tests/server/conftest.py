"""The databases on which the server's tests run."""

from collections.abc import Iterator

import pytest

from tests.postgresql import Cluster
from tests.server import api
from updraft.store import postgresql, schema


@pytest.fixture(scope="session")
def migrated(cluster: Cluster) -> str:
    """A database with the tables, to be copied."""
    name = cluster.make_database()
    engine = postgresql.make_engine(cluster.url(name), 0)
    schema.upgrade(engine)
    engine.dispose()
    return name


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def either_database(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Let `api` use SQLite, then PostgreSQL."""
    if request.param == "sqlite":
        yield
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    name = cluster.make_database(request.getfixturevalue("migrated"))
    monkeypatch.setattr(api, "database_url", lambda _folder: cluster.url(name))
    yield
    cluster.drop_database(name)
