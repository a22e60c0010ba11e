"""What every test shares: which tests need root, and the seed of the randomised ones."""

import os
import random
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests import postgresql
from tests.network import unavailable
from updraft.testing.instance import Instance, instance

# How long one example takes says nothing on a busy machine; a hang meets the test's own timeout.
# The same examples each time, so that a failure is of the change that it comes with; `make soak`
# looks for new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("soak", deadline=None, max_examples=300)
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed",
        type=int,
        default=None,
        help="seed of the chaos tests; a new one each run unless given (shown in the header)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Under nohup, or behind a script's `&`, these come ignored, and so they would to whatever the
    # tests start. A handler, unlike that, ends with an exec.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _ignore)
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(2**32)


def _ignore(number: int, frame: object) -> None:
    """Go on, as whoever started the tests wished."""


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.option.seed}, uid: {os.geteuid()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    networked = [item for item in items if "network" in item.keywords]
    if networked and (reason := unavailable()):
        for item in networked:
            item.add_marker(pytest.mark.skip(reason=reason))
    if postgresql.programs() is None:
        for item in items:
            if "postgresql" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="PostgreSQL is not installed"))
    if os.geteuid() == 0:
        return
    for item in items:
        if "root" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The run's seed: `pytest --seed N` replays a failure."""
    value: int = request.config.option.seed
    return value


@pytest.fixture(scope="module")
def updraft_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """A running instance for a module's tests; at its end no process of it may be left."""
    with instance(tmp_path_factory.mktemp("updraft") / "home") as made:
        started = made.run("urun", "-q", "true")
        assert started.returncode == 0, started.stderr
        yield made


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgresql.Cluster]:
    """A PostgreSQL for the session; mark what uses it with ``postgresql``."""
    with postgresql.cluster() as made:
        yield made


@pytest.fixture
def postgresql_url(cluster: postgresql.Cluster) -> Iterator[str]:
    """The URL of an empty database."""
    name = cluster.make_database()
    yield cluster.url(name)
    cluster.drop_database(name)
